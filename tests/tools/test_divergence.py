"""`lltool perplexity --reference` and its files: what goes to stdout and stderr, and one line for each error."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.eval.divergence.divergence import divergence
from lltool.eval.divergence.summary import RUNNING_HEADER, report_lines, running_line, summarize_divergence
from lltool.gguf.digest import sha256_of
from lltool.gguf.metadata import ValueType, array
from lltool.tools.cli import main
from tests.eval.tiny_text_model import TOKENS, random_text, write_text_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of a vocabulary, one of another, and two texts."""
    folder = tmp_path_factory.mktemp("divergence")
    for seed in (0, 1):
        write_text_model(folder / f"{seed}.gguf", seed=seed)
    swapped = array(ValueType.STRING, [*TOKENS[:40], TOKENS[41], TOKENS[40], *TOKENS[42:]])
    write_text_model(folder / "swapped.gguf", **{"tokenizer.ggml.tokens": swapped})
    for seed, name in enumerate(("a.txt", "b.txt")):
        (folder / name).write_text(random_text(300, seed=seed))
    (folder / "short.txt").write_text("short")
    return folder


def run(folder: Path, options: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """`options` name files of the folder as @name."""
    code = main(["perplexity", *(option.replace("@", f"{folder}/") for option in options.split())])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_pair_in_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "-m @1.gguf --reference @0.gguf -f @a.txt -c 64 --chunks 4"
    code, out, err = run(folder, options, capsys)
    with (
        load_model(folder / "0.gguf", context=64, deterministic=True) as base,
        load_model(folder / "1.gguf", context=64, deterministic=True) as model,
    ):
        result = divergence(base, model, (folder / "a.txt").read_text(), context=64, chunks=4)
    assert code == 0
    assert out.splitlines() == list(report_lines(summarize_divergence(result)))
    lines = err.splitlines()
    assert "windows of 64 tokens" in lines[0]
    assert lines[-5:] == [RUNNING_HEADER, *(running_line(n, result.first(n)) for n in (1, 2, 3, 4))]
    report = json.loads(run(folder, f"{options} --json --worst 2 -b 128", capsys)[1])
    assert report["divergence"]["mean"] == pytest.approx(result.mean)
    assert report["divergence"]["percentiles"]["99.9"] == pytest.approx(np.percentile(result.tokens, 99.9))
    assert (report["scored_tokens"], report["windows"], report["context"]) == (4 * 31, 4, 64)
    assert report["model_sha256"] == sha256_of([folder / "1.gguf"])
    assert (report["reference_kind"], report["reference_sha256"]) == ("model", sha256_of([folder / "0.gguf"]))
    assert report["worst"][0]["divergence"] == pytest.approx(result.tokens.max())


def test_several_texts_make_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "-m @1.gguf --reference @0.gguf -f @a.txt,@b.txt -c 64"
    code, out, _ = run(folder, options, capsys)
    assert code == 0
    rows = [line.split("|")[1:3] for line in out.splitlines()]
    assert [[cell.strip() for cell in row] for row in rows][2:] == [
        [f"{folder}/a.txt", "124"],
        [f"{folder}/b.txt", "124"],
        ["all texts", "248"],
    ]
    records = list(csv.DictReader(io.StringIO(run(folder, f"{options} --format csv", capsys)[1])))
    reports = json.loads(run(folder, f"{options} --format json", capsys)[1])
    assert [float(record["divergence_mean"]) for record in records] == pytest.approx(
        [report["divergence"]["mean"] for report in reports]
    )


def test_files_stand_in_for_the_base(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def mean(options: str) -> float:
        code, out, _ = run(folder, f"-m @1.gguf {options} --json", capsys)
        assert code == 0
        return float(json.loads(out)["divergence"]["mean"])

    source = "-m @0.gguf -f @a.txt -c 64"
    code, out, _ = run(folder, f"{source} --write-reference @r.npz --top-tokens 96 --json", capsys)
    written = json.loads(out)
    assert (code, written["scored_tokens"], written["bytes"]) == (0, 124, (folder / "r.npz").stat().st_size)
    code, out, _ = run(folder, f"{source} --kl-divergence-base @l.bin", capsys)
    assert code == 0
    assert out.startswith(f"Final estimate: PPL = {written['perplexity']:.4f} +/- {written['standard_error']:.5f}\n")
    run(folder, f"{source} --save-all-logits @same.bin", capsys)
    assert (folder / "same.bin").read_bytes() == (folder / "l.bin").read_bytes()

    pair = mean("--reference @0.gguf -f @a.txt -c 64")
    assert mean("--reference @r.npz") == pytest.approx(pair, abs=1e-5)
    assert mean("--reference @r.npz -f @a.txt") == pytest.approx(pair, abs=1e-5)
    from_file = mean("--kl-divergence-base @l.bin --kl-divergence")
    assert from_file == pytest.approx(pair, rel=1e-3)
    assert mean("--reference @l.bin") == from_file
    two = mean("--reference @0.gguf -f @a.txt -c 64 --chunks 2")
    assert mean("--reference @r.npz -f @a.txt --chunks 2") == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-m @swapped.gguf --reference @0.gguf -f @a.txt", "token 40 is 'I', but 'H' in"),
        ("-m @swapped.gguf --reference @r.npz", "that are not those of"),
        ("-m @1.gguf --reference @0.gguf -f @short.txt", "short.txt: 5 tokens, wanted at least 128"),
        ("-m @1.gguf --reference @0.gguf", "a model as base needs a text; give one with -f"),
        ("-m @1.gguf --reference @r.npz -f @b.txt", "r.npz: was made from another text than"),
        ("-m @1.gguf --reference @l.bin -f @b.txt", "l.bin: was made from another text than"),
        ("-m @1.gguf --reference @r.npz -f @a.txt,@b.txt", "2 texts, but"),
        ("-m @1.gguf --reference @cut.npz", "cut.npz: not a reference file, or a truncated one"),
        ("-m @1.gguf --reference @cut.bin", "cut.bin: 900 bytes, but 4 chunks"),
        ("-m @1.gguf --kl-divergence-base @cut.bin --kl-divergence", "cut.bin: 900 bytes, but 4 chunks"),
        ("-m @1.gguf --reference @none.gguf -f @a.txt", "none.gguf: no such file"),
        ("-m @1.gguf --reference @a.txt -f @a.txt", "a.txt: "),
        ("-m @1.gguf --kl-divergence", "give the base model's file with --kl-divergence-base"),
        (
            "-m @1.gguf --reference @0.gguf --write-reference @x -f @a.txt",
            "--reference and --write-reference cannot be used together",
        ),
        ("-m @1.gguf --write-reference @x", "0 texts, wanted one for --write-reference"),
        ("-m @1.gguf --write-reference @x -f @a.txt --top-tokens 1", "top 1, wanted at least 2"),
        ("-m @1.gguf --write-reference @none/x -f @a.txt", "none: no such folder; make it first"),
        ("-m @1.gguf --write-reference @x -f @a.txt --worst 3", "--worst goes with --reference"),
        ("-m @1.gguf --reference @0.gguf -f @a.txt --top-tokens 3", "--top-tokens goes with --write-reference"),
        ("-m @1.gguf --reference @0.gguf -f @a.txt --method hf", "do not apply to a divergence"),
    ],
)
def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], options: str, message: str) -> None:
    if not (folder / "cut.npz").exists():
        source = "-m @0.gguf -f @a.txt -c 64"
        run(folder, f"{source} --write-reference @r.npz", capsys)
        run(folder, f"{source} --kl-divergence-base @l.bin", capsys)
        (folder / "cut.npz").write_bytes((folder / "r.npz").read_bytes()[:900])
        (folder / "cut.bin").write_bytes((folder / "l.bin").read_bytes()[:900])
    code, out, err = run(folder, f"-c 64 {options}", capsys)
    assert (code, out) == (2, "")
    error = err[err.index("lltool: error: ") :]  # a running command may have printed other lines before
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "x").exists()
