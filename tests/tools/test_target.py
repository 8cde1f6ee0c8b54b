"""`lltool quantize --target` on a tiny model, and the requests that it refuses."""

import json
from pathlib import Path

import pytest

from lltool.engine.model import Model
from lltool.eval.search import best_mix
from lltool.tools.cli import main
from tests.engine import tiny_gguf
from tests.eval.search.test_best_mix import TEXT, Letters


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Model, "tokenizer", Letters())
    monkeypatch.setattr(best_mix, "JUDGED_CONTEXT", 64)
    (tmp_path / "text.txt").write_text(TEXT)
    return tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())


def test_a_file_its_probes_and_what_is_said(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tiny.with_name("text.txt"), tiny.with_name("small.gguf")
    options = ["--target", "60000", "--calibration", str(text), "--probe-tokens", "64", "--json"]
    assert main(["quantize", *options, str(tiny), str(out), "1"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["path"] == str(out)
    assert result["bytes"] == out.stat().st_size <= result["budget"] == 60000
    assert result["kept_mix"] == (result["gain"] > 0) == tiny.with_name("small.recipe.toml").exists()
    assert result["gain"] == pytest.approx(result["divergence_plain"] - result["divergence"])
    assert "best mix:" in said.err
    assert f"plain {result['plain']}" in said.err
    assert tiny.with_name("tiny.probes.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "many"], "wanted a size"),
        (["--target", "60000"], "needs --calibration"),
        (["--target", "60000", "--pure", "--calibration", "{text}"], "chooses the types itself"),
        (["--target", "60000", "--dry-run", "--calibration", "{text}"], "chooses the types itself"),
        (
            ["--target", "900", "--calibration", "{text}"],
            "a file of 900 bytes is impossible: its smallest",
        ),
        (["--target", "0.5bpw", "--calibration", "{text}"], "0.5 bits a weight are impossible"),
        (["--target", "60000", "--calibration", "{text}", "a", "b", "c"], "wanted IN"),
        (["--target", "60000", "--calibration", "{text}", "--prune-layers", "1"], "pruned layers"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(text=tiny.with_name("text.txt")) for argument in arguments]
    assert main(["quantize", *given, str(tiny)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
