"""`lltool imatrix`: what goes to stdout and stderr, what other tools read, and one line for each error."""

import json
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.reader import open_gguf
from lltool.quant.importance import read_importance
from lltool.tools.cli import main
from tests.conftest import GoldenFile
from tests.eval.tiny_text_model import random_text, write_text_model

SMALL = ["-c", "32", "-b", "32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_text_model(tmp_path_factory.mktemp("tiny") / "model.gguf", broken="~"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(random_text(32 * 5, without="~"))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["imatrix", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_path_is_data_and_the_rest_is_talk(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "imatrix.gguf"
    code, out, err = run(capsys, "-m", model, "-f", text, "-o", output, *SMALL)
    assert (code, out) == (0, f"{output}\n")
    running, final, coverage = err.splitlines()
    assert running.count("[") == 5
    assert final.startswith("Final estimate: PPL = ")
    assert coverage == "importance of 21 matrices, but none of token_embd.weight"

    code, out, err = run(capsys, "-m", model, "-f", text, "-o", output, *SMALL, "--json")
    report = json.loads(out)
    assert code == 0
    assert err.startswith(f"lltool: note: {output}: resuming after window 5 of 5\n")
    assert (report["chunks"], report["chunks_resumed"], report["chunks_skipped"]) == (5, 5, [])
    assert f"{report['perplexity']:.4f}" in final
    with open_gguf(output) as file:
        assert file.metadata["general.type"].data == "imatrix"
        assert file.metadata["imatrix.datasets"].data[0] == text
        made_of = {key: file.metadata[key].data for key in report["made_of"]}
    assert made_of == report["made_of"]
    assert made_of.keys() >= {"lltool.version", "lltool.imatrix.model_sha256", "lltool.imatrix.text_sha256"}


def test_a_chunk_that_gives_nan_is_named(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = random_text(32 * 6, without="~")
    (tmp_path / "text.txt").write_text(text[:100] + "~" + text[101:])
    options = ["-m", model, "-f", tmp_path / "text.txt", "-o", tmp_path / "imatrix.gguf", *SMALL, "--chunk", "2"]
    code, _, err = run(capsys, *options, "--until-stable", "0.9999")
    assert code == 0
    assert "lltool: note: skipped chunks that gave NaN or infinity: 3\n" in err


def test_files_are_merged_and_change_format(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, dat, back, twice = (tmp_path / name for name in ("one.gguf", "one.dat", "back.gguf", "twice.gguf"))
    assert run(capsys, "-m", model, "-f", text, "-o", one, *SMALL, "--no-ppl")[0] == 0
    assert run(capsys, "--in-file", one, "-o", dat, "-c", "32", "--output-format", "dat") == (0, f"{dat}\n", "")
    assert run(capsys, "--in-file", dat, "-o", back, "-c", "32")[0] == 0
    code, out, _ = run(capsys, "--in-file", f"{one},{dat}", "--in-file", back, "-o", twice, "-c", "32", "--json")
    assert (code, json.loads(out)["chunks"]) == (0, 15)
    wanted, found = read_importance(one), read_importance(twice)
    for name, sums in wanted.sums.items():
        np.testing.assert_allclose(found.sums[name], 3 * sums, rtol=1e-5)
        assert found.counts[name] == 3 * 5 * 32
        np.testing.assert_allclose(read_importance(back).means(name), wanted.means(name), rtol=1e-6)


def test_statistics_are_llama_imatrixs(golden_file: GoldenFile, capsys: pytest.CaptureFixture[str]) -> None:
    golden = golden_file("imatrix/smollm2-imatrix.gguf")
    code, out, err = run(capsys, "--in-file", golden, "--show-statistics")
    assert (code, err) == (0, "")
    matrices, layers = out.split("\n\n")
    assert len(matrices.splitlines()) == 1 + 210
    assert len(layers.splitlines()) == 1 + 30
    report = json.loads(run(capsys, "--in-file", golden, "--show-statistics", "--json")[1])
    assert len(report["matrices"]) == 210
    assert report["matrices"][0]["name"] == "blk.18.attn_k.weight"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to do: give a model and a text (-m, -f), or files to merge (--in-file)"),
        (["MODEL"], "names a model, but there is no text to run it on; give one with -f"),
        (["-f", "TEXT"], "no model is named; wanted a GGUF file"),
        (["-m", "MODEL", "-f", "none.txt"], "none.txt: no such file"),
        (["-m", "none.gguf", "-f", "TEXT"], "none.gguf: no such file"),
        (["-m", "TEXT", "-f", "TEXT"], "text.txt: not a GGUF file"),
        (["-m", "MODEL", "-f", "TEXT"], "text.txt: 160 tokens, wanted at least 1024"),
        (["-m", "MODEL", "-f", "TEXT", "-c", "600"], "context 600, but the model was made for at most 512"),
        (
            ["-m", "MODEL", "-f", "TEXT", *SMALL, "--chunk", "5"],
            "text.txt: has 5 chunks of 32 tokens, wanted more than 5",
        ),
        (["-m", "MODEL", "-f", "TEXT", *SMALL, "--chunk", "-1"], "'-1' is not a whole number"),
        (["-m", "MODEL", "-f", "TEXT", *SMALL, "--chunks", "0"], "'0' is not a whole number of at least 1"),
        (["-m", "MODEL", "-f", "TEXT", *SMALL, "-ofreq", "0"], "'0' is not a whole number of at least 1"),
        (["-m", "MODEL", "-f", "TEXT", "--until-stable", "1.5"], "'1.5' is not a number between 0 and 1"),
        (["-m", "MODEL", "-f", "TEXT", *SMALL, "--chat"], "text.txt, line 1: "),
        (["-m", "MODEL", "-f", "TEXT", *SMALL, "--in-file", "none.gguf"], "none.gguf: no such file"),
        (["-m", "MODEL", "-f", "TEXT", *SMALL, "--in-file", "MODEL"], "model.gguf: not an importance file"),
        (["-m", "MODEL", "-f", "TEXT", *SMALL, "-o", "TEXT"], "text.txt: would overwrite its own source"),
        (["-m", "MODEL", "-f", "TEXT", *SMALL, "-o", "none/imatrix.gguf"], "none: no such folder; make it first"),
        (["-m", "MODEL", "-f", "TEXT", *SMALL, "--output-format", "csv"], "invalid choice: 'csv'"),
        (["--in-file", "TEXT"], "text.txt: "),
        (["--show-statistics"], "--show-statistics with 0 files, wanted one --in-file"),
        (["--show-statistics", "--in-file", "a,b"], "--show-statistics with 2 files, wanted one --in-file"),
        (["--show-statistics", "--in-file", "MODEL"], "model.gguf: not an importance file"),
    ],
)
def test_bad_input_is_one_line(
    model: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, *({"MODEL": model, "TEXT": text}.get(option, option) for option in options))
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("lltool: note: ")]
    assert len(lines) == 1
    assert lines[0].startswith("lltool: error: ")
    assert message in lines[0]
    assert sorted(tmp_path.iterdir()) == before
