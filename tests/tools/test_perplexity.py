"""`lltool perplexity`: what goes to stdout and stderr, and one line for each error."""

import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.eval.common.text import SAMPLE_TEXT
from lltool.eval.scoring.perplexity import perplexity
from lltool.tools.cli import main
from tests.eval.tiny_text_model import random_text, write_text_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_text_model(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "first.txt", tmp_path / "second.txt"]
    for i, path in enumerate(paths):
        path.write_text(random_text(500 + 100 * i, i))
    return [str(path) for path in paths]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert main(["perplexity", *arguments]) == 0
    out, err = capsys.readouterr()
    return out, err


def test_final_estimate_is_data_and_running_values_are_talk(
    real_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(real_model("smollm2-q4_1"))
    arguments = ["-m", model, "-f", str(SAMPLE_TEXT), "-c", "64", "--chunks", "3"]
    out, err = run(capsys, *arguments)
    report = json.loads(run(capsys, *arguments, "--json", "-b", "40")[0])  # windows cut over batches
    assert out.splitlines() == [
        f"Final estimate: PPL = {report['perplexity']:.4f} +/- {report['standard_error']:.5f}",
        f"{report['bits_per_byte']:.4f} bits per byte, {report['bits_per_word']:.4f} bits per word "
        f"({report['scored_tokens']} scored tokens are {report['scored_bytes']} bytes, {report['scored_words']} words)",
        "method: llama-perplexity's: windows of 64 tokens, second half scored, BOS first in each where the vocabulary "
        "adds it",
    ]
    tokenizing, took, begin, eta, values = err.splitlines()
    assert tokenizing == "perplexity: tokenizing the input .."
    assert re.fullmatch(r"perplexity: tokenization took [\d.]+ ms", took)
    assert begin == "perplexity: calculating perplexity over 3 chunks, n_ctx=64, batch_size=512, n_seq=8"
    assert re.fullmatch(r"perplexity: \d+\.\d\d seconds per pass - ETA \d+\.\d\d minutes", eta)
    assert values == "".join(f"[{i}]{value:.4f}," for i, value in enumerate(report["running"], 1))
    assert (report["context"], report["windows"], report["scored_tokens"], report["batch"]) == (64, 3, 3 * 31, 40)
    assert report["text_sha256"] == hashlib.sha256(SAMPLE_TEXT.read_bytes()).hexdigest()
    assert report["model_sha256"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert report["method"] == out.splitlines()[2].removeprefix("method: ")


def test_several_texts_are_a_table(model: str, texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", model, "-c", "50", "-b", "120"]
    out, err = run(capsys, *arguments, "-f", ",".join(texts))
    assert run(capsys, *arguments, "-f", texts[0], "-f", texts[1], "--format", "md")[0] == out
    records = json.loads(run(capsys, *arguments, "-f", ",".join(texts), "--json")[0])
    titles, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()[:-2]]
    assert titles == ["text", "tokens", "scored", "PPL", "±", "bits/byte", "bits/word"]
    for row, path, record in zip(rows, texts, records, strict=False):
        shown = [record[key] for key in ("perplexity", "standard_error", "bits_per_byte", "bits_per_word")]
        assert row == [path, str(record["tokens"]), str(record["scored_tokens"]), *(f"{value:.4f}" for value in shown)]
    a, b = records
    assert [(r["tokens"], r["windows"], r["scored_tokens"]) for r in records] == [(500, 10, 240), (600, 12, 288)]
    together = np.exp((240 * np.log(a["perplexity"]) + 288 * np.log(b["perplexity"])) / 528)
    assert rows[2][:4] == ["all texts", "1100", "528", f"{together:.4f}"]
    mean = (a["perplexity"] + b["perplexity"]) / 2
    error = np.hypot(a["standard_error"], b["standard_error"]) / 2
    bits = [f"{(a[key] + b[key]) / 2:.4f}" for key in ("bits_per_byte", "bits_per_word")]
    assert rows[3] == ["mean of texts", "", "", f"{mean:.4f}", f"{error:.4f}", *bits]
    assert out.splitlines()[-1].startswith("method: llama-perplexity's: windows of 50 tokens")
    assert [line for line in err.splitlines() if ".txt" in line] == [f"perplexity: {path}" for path in texts]


def test_csv_has_a_line_a_text(model: str, texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", model, "-c", "50", "-f", ",".join(texts)]
    rows = list(csv.DictReader(run(capsys, *arguments, "--format", "csv")[0].splitlines()))
    records = json.loads(run(capsys, *arguments, "--format", "json")[0])
    for row, record in zip(rows, records, strict=True):
        assert row.keys() == record.keys() - {"running"}
        for key in row.keys() - {"seconds", "test_time"}:
            assert row[key] == str(record[key] if record[key] is not None else "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--score", "all"], {"score": "all"}),
        (["--method", "hf"], {"method": "hf"}),
        (["--method", "hf", "--stride", "7"], {"method": "hf", "stride": 7}),
        (["--ppl-stride", "0"], {}),
    ],
)
def test_methods_are_those_of_the_call(
    model: str, texts: list[str], capsys: pytest.CaptureFixture[str], options: list[str], expected: dict[str, Any]
) -> None:
    found = json.loads(run(capsys, "-m", model, "-c", "50", "-f", texts[0], "--json", *options)[0])
    with load_model(model, context=50, deterministic=True) as loaded:
        result = perplexity(loaded, Path(texts[0]).read_text(), context=50, **expected)
    assert found["perplexity"] == pytest.approx(result.perplexity, rel=1e-6)
    assert found["method"] == str(result.method)


def test_a_stride_alone_is_llama_cpps(
    model: str, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(run(capsys, "-m", model, "-c", "200", "-f", texts[1], "--ppl-stride", "100", "--json")[0])
    assert (report["method_name"], report["stride"], report["score"]) == ("strided", 100, None)
    assert "windows of 256 tokens, one every 100" in report["method"]
    assert report["windows"] == 4


def test_losses_have_each_scored_token(
    model: str, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-m", model, "-c", "50", "-f", ",".join(texts), "--json"]
    records = json.loads(run(capsys, *arguments, "--losses", str(tmp_path / "l.csv"))[0])
    run(capsys, *arguments, "--losses", str(tmp_path / "l.npy"))
    with (tmp_path / "l.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    array = np.load(tmp_path / "l.npy")
    assert len(rows) == len(array) == 240 + 288
    for name in ("file", "position", "token", "log_prob"):
        assert [float(row[name]) for row in rows] == array[name].tolist()
    assert [row["text"].encode() for row in rows] == array["text"].tolist()
    for number, (path, record) in enumerate(zip(texts, records, strict=True)):
        part = array[array["file"] == number]
        assert np.exp(-part["log_prob"].mean()) == pytest.approx(record["perplexity"], rel=1e-12)
        text = Path(path).read_text()  # of one character a token
        assert [text[row["position"]].encode() for row in part] == part["text"].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.txt", "l.csv", "l.npy", "second.txt"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (b"short", ["-c", "8"], "text.txt: 5 tokens, wanted at least 16 (two windows of 8)"),
        (b"", ["-c", "8"], "text.txt: 0 tokens, wanted at least 16"),
        (b"a" * 200, ["-c", "8", "--stride", "4"], "text.txt: 200 tokens, wanted at least 512 (two windows of 256)"),
        (b"", ["--method", "hf"], "text.txt: 0 tokens, wanted at least 3"),
        (b"a \xff", [], "text.txt: byte 2 is not UTF-8"),
        (b"text", ["-c", "513"], "context 513, but the model was made for at most 512"),
        (b"text", ["-c", "8", "-b", "9" * 20], "text.txt: 4 tokens, wanted at least 16"),
        (b"text", ["-c", "2"], "context of 2 tokens: wanted at least 4"),
        (b"text", ["-c", "8", "--stride", "9"], "stride of 9 tokens, wanted 1 to the context of 8"),
        (b"text", ["--stride", "-1"], "'-1' is not a whole number of at least 1"),
        (b"text", ["--method", "llama", "--stride", "9"], "stride 9 goes with method strided or hf"),
        (b"text", ["--method", "hf", "--score", "all"], "score all goes with method llama"),
        (b"text", ["--losses", "losses.txt"], "'losses.txt' is not the name of a .csv or .npy file"),
        (b"text", ["--losses", "no/such/folder/losses.csv"], "no/such/folder: no such folder; make it first"),
        (b"text", ["-f", "a.txt,"], "'a.txt,' lacks the name of a file"),
        (b"text", ["--worst", "3"], "--worst goes with --reference or --kl-divergence"),
        (b"text", ["--top-tokens", "3"], "--top-tokens goes with --write-reference"),
        (None, [], "text.txt: no such file"),
    ],
)
def test_bad_input_is_one_line(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: bytes | None,
    options: list[str],
    message: str,
) -> None:
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_bytes(text)
    assert main(["perplexity", "-m", model, "-f", str(path), *options]) == 2
    out, err = capsys.readouterr()
    *talk, error = err.splitlines()
    assert out == ""
    assert all(line.startswith("perplexity: tokeniz") for line in talk)
    assert error.startswith("lltool: error: ")
    assert message in error


def test_a_short_text_is_an_error_before_any_computation(
    model: str, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("short")
    assert main(["perplexity", "-m", model, "-c", "50", "-f", f"{texts[0]},{short}"]) == 2
    err = capsys.readouterr().err
    assert "short.txt: 5 tokens" in err
    assert "[1]" not in err
