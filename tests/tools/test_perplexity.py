"""`lltool perplexity`: what it prints where, and one line for each thing that is wrong."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.eval.text import SAMPLE_TEXT
from lltool.tools.cli import main


def test_final_estimate_is_data_and_running_values_are_talk(
    real_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(real_model("smollm2-q4_1"))
    arguments = ["perplexity", "-m", model, "-f", str(SAMPLE_TEXT), "-c", "64", "--chunks", "3"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert main([*arguments, "--json", "-b", "40"]) == 0  # windows cut over batches
    report = json.loads(capsys.readouterr().out)
    assert out == f"Final estimate: PPL = {report['perplexity']:.4f} +/- {report['standard_error']:.5f}\n"
    first, *values = err.splitlines()
    assert re.fullmatch(r"3 windows of 64 tokens, about \d+ s", first)
    assert ",".join(values) == ",".join(f"[{i}]{value:.4f}" for i, value in enumerate(report["running"], 1))
    assert (report["context"], report["windows"], report["scored_tokens"], report["batch"]) == (64, 3, 3 * 31, 40)
    assert report["text_sha256"] == hashlib.sha256(SAMPLE_TEXT.read_bytes()).hexdigest()
    assert report["model_sha256"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (b"short", [], "text.txt: 1 tokens, wanted at least 1024 (two windows of 512)"),
        (b"", ["-c", "8"], "text.txt: 0 tokens, wanted at least 16"),
        (b"a \xff", [], "text.txt: byte 2 is not UTF-8"),
        (b"text", ["-c", "8193"], "context 8193, the model was made for 8192 at most"),
        (b"text", ["-c", "8", "-b", "9" * 20], "text.txt: 1 tokens, wanted at least 16"),
        (b"text", ["-c", "2"], "context of 2 tokens: wanted at least 4"),
        (None, [], "text.txt: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(
    real_model: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: bytes | None,
    options: list[str],
    message: str,
) -> None:
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_bytes(text)
    assert main(["perplexity", "-m", str(real_model("smollm2-q4_1")), "-f", str(path), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lltool: error: ")
    assert message in err
    assert err.count("\n") == 1
