"""`lltool report` on the output of the other commands, and the requests that it refuses."""

import json
from pathlib import Path

import pytest

from lltool.tools.cli import main
from tests.eval.tiny_text_model import random_text, write_text_model

CaptureFixture = pytest.CaptureFixture[str]


def test_it_reads_what_the_commands_print(tmp_path: Path, capsys: CaptureFixture) -> None:
    source = write_text_model(tmp_path / "tiny-F32.gguf")
    small = tmp_path / "tiny-Q4_0.gguf"
    results, text = tmp_path / "results", tmp_path / "text.txt"
    results.mkdir()
    text.write_text(random_text(400))
    commands = {
        "quantize": ["quantize", "--json", "--pure", str(source), str(small), "Q4_0"],
        "kl": ["perplexity", "-m", str(small), "--reference", str(source), "-f", str(text), "-c", "64", "--json"],
        "base": ["perplexity", "-m", str(source), "-f", str(text), "-c", "64", "--json"],
        "speed": ["bench", "-m", f"{source},{small}", "-p", "8", "-n", "4", "-r", "1", "-t", "1", "-o", "json"],
    }
    printed = {}
    for name, command in commands.items():
        capsys.readouterr()
        assert main(command) == 0
        (results / f"{name}.json").write_text(out := capsys.readouterr().out)
        printed[name] = json.loads(out)
    assert main(["report", str(results)]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[:4]]
    by_title = {title: [line[i] for line in lines[2:]] for i, title in enumerate(lines[0])}
    assert by_title["file"] == ["F32 *", "Q4_0 *"]
    kl = printed["kl"]
    assert [cell.split(" ")[0] for cell in by_title["perplexity"]] == [
        f"{printed['base']['perplexity']:.1f}",
        f"{kl['perplexity']:.1f}",
    ]
    assert by_title["KL divergence, nats a token"][0] == "0"
    assert float(by_title["KL divergence, nats a token"][1].split(" ")[0]) == pytest.approx(
        kl["divergence"]["mean"], rel=0.05
    )
    assert by_title["bits a weight"][1] == f"{printed['quantize']['bits_per_weight']:.2f}"
    speeds = [float(cell) for cell in by_title["tg4 ms a token, 1 thread"]]
    medians = [row["median_ts"] for row in printed["speed"] if row["n_gen"]]
    assert speeds == [pytest.approx(1000 / speed, abs=0.01) for speed in medians]
    assert {path.name for path in results.iterdir()} >= {"report.html", "report.md", "report.csv", "report.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/none"], "not a folder"),
        (["{folder}"], "no results"),
        (["{folder}", "-o", "{folder}/report.pdf"], "report.pdf"),
        (["{folder}", "-o", "{folder}/none/report.html"], "none: no such folder; make it first"),
        ([], "required: DIR"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], message: str, tmp_path: Path, capsys: CaptureFixture) -> None:
    if "-o" in arguments:
        (tmp_path / "a.json").write_text(
            '{"path": "m.gguf", "file_type": "", "bits_per_weight": 1, "tensors": [], "bytes": 1}'
        )
    assert main(["report", *(argument.format(folder=tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
