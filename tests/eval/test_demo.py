"""The demo on a short text: its files and results, and a second run that makes nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.eval import demo
from lltool.eval.selection import survey
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.tools.demo import main


@pytest.mark.slow
def test_demo_goes_the_whole_way_once(
    real_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(demo.SAMPLE_TEXT.read_text()[:5500])
    sizes = {"SAMPLE_TEXT": text, "PROMPT": 16, "GENERATION": 2, "REPETITIONS": 1, "ANSWER_TOKENS": 8}
    for name, value in sizes.items():
        monkeypatch.setattr(demo, name, value)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-q4_1.gguf").symlink_to(real_model("smollm2-q4_1"))

    seen: list[tuple[int, int]] = []
    found = demo.run_demo(tmp_path, progress=lambda done, total, _: seen.append((done, total)))
    assert [entry.name for entry in found.entries] == ["F16", "Q8_0", "Q4_0"]
    assert [round(entry.bits_per_weight or 0, 2) for entry in found.entries] == [16.00, 8.51, 4.51]
    exact, q8, q4 = (next(iter(entry.qualities.values())) for entry in found.entries)
    assert q8.perplexity == pytest.approx(exact.perplexity, rel=0.05)
    assert q4.perplexity > exact.perplexity
    losses = [entry.divergence[0] for entry in found.entries if entry.divergence]
    assert losses[0] == 0 < losses[1] < losses[2]
    assert all("Tokyo" in answers[0] for answers in found.answers.values())
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    with open_gguf(found.entries[2].path) as file:
        assert {t.type for t in file.tensors if len(t.shape) > 1} == {GGMLType.Q4_0}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a second run makes nothing")

    for name in ("export", "convert", "write_plans", "Generation", "draw_png"):
        monkeypatch.setattr(demo, name, refuse)
    for name in ("measure_points", "measure_footprint", "perplexity", "divergences"):
        monkeypatch.setattr(survey, name, refuse)
    capsys.readouterr()
    assert main(["--cache", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\| Q8_0 \* +\| +138\.1 \| +8\.51 \|", out)
    assert out.rstrip().endswith(str(found.plot))
