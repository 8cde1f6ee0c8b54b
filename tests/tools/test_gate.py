"""`lltool gate`: its output, its exit codes, and one line for each error."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from lltool.gguf.metadata import f32
from lltool.tools.cli import main
from tests.eval.tiny_text_model import random_text, write_text_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.gguf, text.txt and their baseline, base.json."""
    folder = tmp_path_factory.mktemp("gate")
    write_text_model(folder / "model.gguf")
    (folder / "text.txt").write_text(random_text(600))
    arguments = ["-m", str(folder / "model.gguf"), "-f", str(folder / "text.txt"), "-o", str(folder / "base.json")]
    assert main(["gate", "record", *arguments, "-c", "64", "-n", "4", "-t", "1"]) == 0
    return folder


def test_a_check_prints_a_table_and_exits_with_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "check", str(folder / "base.json"), "-t", "1"]) == 0
    out, err = capsys.readouterr()
    titles, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if "|" in line]
    assert titles == ["measure", "baseline", "now", "difference", "± error", "limit", "verdict"]
    verdicts = {row[0]: row[-1] for row in rows}
    assert list(verdicts) == [
        "tokens of the text",
        "prompts",
        "perplexity",
        "mean KL",
        "99.9 % KL",
        "top-1 agreement, %",
        "KL of answers",
        "greedy flips",
        "mean KL, float32",
        "prefill speed, ratio",
        "decode speed, ratio",
    ]
    assert [*verdicts.values()] == ["ok"] * 9 + ["reported"] * 2
    assert out.endswith("\nPASS: no regression\n")
    assert err == ""


def test_a_regression_exits_with_1_and_says_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = write_text_model(folder / "wrong.gguf", **{"gemma3.rope.freq_base": f32(50)})
    arguments = ["gate", "check", str(folder / "base.json"), "-m", str(wrong), "-t", "1"]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "REGRESSION" in out
    assert f"note: {wrong} is not the file that was recorded" in out
    assert "\nFAIL: it is off in float32 too: other weights, metadata or operations\n" in out
    assert main([*arguments, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    measures = {row["measure"]: row for row in report["measures"]}
    exact = measures["mean KL, float32"]
    assert exact["verdict"] == "REGRESSION"
    assert exact["now"] - exact["baseline"] == pytest.approx(exact["difference"])
    assert exact["difference"] > exact["limit"] > 0
    assert report["model"] == str(wrong)
    assert report["threads"] == 1
    assert len(report["model_sha256"]) == len(report["text_sha256"]) == 64


def test_speed_is_gated_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that became a hundred times slower relative to the same probes."""
    data = json.loads((folder / "base.json").read_text())
    for name, factor in (("decode", 100), ("copied", 1)):
        samples = data["speed"][name]
        # Samples without spread: a factor of 100 is far beyond it.
        data["speed"][name] = [factor * samples[0]] * len(samples)
    (folder / "fast.json").write_text(json.dumps(data))
    assert main(["gate", "check", str(folder / "fast.json"), "-t", "1"]) == 0
    assert main(["gate", "check", str(folder / "fast.json"), "-t", "1", "--speed"]) == 1
    assert "FAIL: slower relative to the machine's own speed" in capsys.readouterr().out
    assert main(["gate", "check", str(folder / "fast.json"), "-t", "2", "--speed"]) == 0
    assert "note: recorded with 1 threads, checked with 2: speeds are not comparable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "gone.json"], "gone.json: no such file"),
        (["check", "text.txt"], "text.txt: not JSON, or cut off; record a new baseline"),
        (["check", "base.json", "-f", "other.txt"], "was recorded on a text of"),
        (["check", "base.json", "-m", "text.txt"], "text.txt: "),
        (["check", "base.json", "-m", "gone.gguf"], "gone.gguf: no such file"),
        (["check", "base.json", "-b", "0"], "'0' is not a whole number of at least 1"),
        (["record", "-m", "model.gguf", "-f", "text.txt", "-o", "x.json"], "wanted at least 2048 (8 windows of 256)"),
        (["record", "-m", "model.gguf", "-f", "text.txt", "-o", "gone/x.json"], "gone: no such folder; make it first"),
        (["record", "-m", "model.gguf", "-f", "text.txt", "-o", "x.txt"], "wanted a name that ends with .json"),
        (["verify"], "invalid choice: 'verify' (choose from"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_gives_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "other.txt").write_text(random_text(600, seed=1))
    assert main(["gate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lltool: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--help"], "- run: lltool gate check reports/baselines/model.json"),
        (["record", "--help"], "lltool gate record -m model.gguf"),
        (["check", "--help"], "lltool gate check reports/baselines/model.json --json"),
    ],
)
def test_help_shows_examples_and_a_job_for_ci(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):  # argparse exits
        assert main(["gate", *arguments]) == 0
    assert part in capsys.readouterr().out
