"""`lltool tasks`: its lines, its record, and one line for each error."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

from lltool.eval.common.intervals import wilson
from lltool.tools.cli import main
from lltool.tools.tasks import from_perplexity
from tests.eval.tiny_text_model import write_text_model

HELLASWAG = "Tea: She\n2\nfills a cup\ndrinks\nsleeps now\ngoes\n" * 3
WINOGRANDE = "0,The cat saw the dog because _ was near it.,cat,dog,1\n1,A _ ran.,cat,dog,2\n"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_text_model(tmp_path / "model.gguf"))


def write(folder: Path, text: str) -> str:
    path = folder / "tasks.txt"
    path.write_text(text)
    return str(path)


def test_record_and_lines_agree(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, HELLASWAG)
    assert main(["tasks", "hellaswag", "-m", model, "-f", path, "--tasks", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["tasks", "hellaswag", "-m", model, "-f", path, "--hellaswag-tasks", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert lines[:2] == ["", "task\tacc_norm\t95% confidence interval"]
    assert (record["tasks"], len(record["answers"])) == (2, 2)
    assert record["right"] == sum(answer["chosen"] == 2 for answer in record["answers"])
    low, high = wilson(record["right"], 2)
    assert lines[3] == f"2\t{50 * record['right']:.8f}%\t[{100 * low:.4f}%, {100 * high:.4f}%]"
    assert (record["low"], record["high"], record["random_chance"]) == (low, high, 0.25)
    assert record["file_sha256"] == hashlib.sha256(HELLASWAG.encode()).hexdigest()
    assert record["model_sha256"] == hashlib.sha256(Path(model).read_bytes()).hexdigest()
    assert lines[-1] == f"95% interval (Wilson): {100 * low:.2f}% to {100 * high:.2f}%"


def test_final_line_of_winogrande(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command takes llama-perplexity's own arguments."""
    assert main(["perplexity", "-m", model, "-bf", write(tmp_path, WINOGRANDE), "--winogrande"]) == 0
    first, second, _, final, interval = capsys.readouterr().out.splitlines()
    right = [line.split()[4] == line.split()[5] for line in (first, second)]
    assert second.startswith(f"2\t{50 * sum(right):.4f}\t")
    error = {0: 0.0, 1: 50.0, 2: 0.0}[sum(right)]
    assert final == f"Final Winogrande score(2 tasks): {50 * sum(right):.4f} +/- {error:.4f}"
    assert interval.startswith("95% interval (Wilson): ")


def test_generation(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sacrebleu")
    path = write(tmp_path, '{"prompt": "ab", "reference": "c d"}\n{"prompt": "x", "reference": "y"}\n')
    arguments = ["tasks", "generation", "-m", model, "-f", path, "--samples", "2", "-n", "9", "--temp", "1"]
    assert main(arguments) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [len(texts) for texts in record["texts"]] == [2, 2]
    assert [row[0].strip() for row in rows[2:]] == list(record["measures"])
    for row in rows[2:]:
        measure = record["measures"][row[0].strip()]
        assert (row[1].strip(), row[2].strip()) == (f"{measure['mean']:.4f}", f"{measure['standard_error']:.4f}")


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("lm_eval", ["lm-eval", "run"], "pip install 'lltool[lm-eval]'"),
        ("sacrebleu", ["generation", "-m", "M", "-f", "{tasks}"], "pip install 'lltool[generation]'"),
    ],
)
def test_a_library_that_is_not_installed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    arguments: list[str],
    message: str,
) -> None:
    for name in {missing, *(name for name in sys.modules if name.startswith(f"{missing}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "lltool.eval.scoring.lm_eval", raising=False)
    path = write(tmp_path, '{"prompt": "ab"}')
    assert main(["tasks", *(argument.format(tasks=path) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_flags_of_llama_perplexity() -> None:
    given = ["-m", "M", "--winogrande", "-f", "F", "--winogrande-tasks", "9"]
    assert from_perplexity(given) == ["winogrande", "-m", "M", "-f", "F", "--winogrande-tasks", "9"]
    assert from_perplexity(["-m", "M", "-f", "F"]) is None


def test_wilson_interval() -> None:
    assert wilson(24, 25) == pytest.approx((0.804559, 0.992904), abs=1e-6)  # as llama-perplexity prints them
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hellaswag"], "the following arguments are required: -f/--file"),
        (["hellaswag", "-f", "{tasks}"], "tasks.txt: 2 lines, wanted six for each task"),
        (["winogrande", "-f", "{tasks}"], "no model is named; wanted a GGUF file"),
        (["arc"], "invalid choice: 'arc'"),
        ([], "the following arguments are required: TASK"),
        (["hellaswag", "-m", "{model}", "-f", "none.txt"], "none.txt: no such file"),
        (["hellaswag", "-m", "{model}", "-f", "{tasks}"], "tasks.txt: 2 lines, wanted six for each task"),
        (["winogrande", "-m", "none.gguf", "-f", "{tasks}"], "none.gguf: no such file"),
        (
            ["winogrande", "-m", "{model}", "-f", "{tasks}", "-c", "8"],
            "task 0 has 43 tokens, but the model was loaded for 8",
        ),
        (["winogrande", "-m", "{model}", "-f", "{tasks}", "--tasks", "-1"], "'-1' is not a whole number"),
        (["multiple-choice", "-m", "{model}", "-f", "{tasks}"], "tasks.txt: 1750346800 tasks announced"),
    ],
)
def test_bad_input_gives_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = write(tmp_path, WINOGRANDE)
    assert main(["tasks", *(argument.format(model=model, tasks=path) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lltool: error: ")
    assert message in err
    assert err.count("\n") == 1
