"""The demo, with little text: what it makes and finds, and that a second run makes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.eval import demo
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
    assert [v.quality.name for v in found.variants] == ["F16", "Q8_0", "Q4_0"]
    assert [round(v.facts.bits_per_weight or 0, 2) for v in found.variants] == [16.00, 8.51, 4.51]
    exact, q8, q4 = (v.quality for v in found.variants)
    assert q8.perplexity == pytest.approx(exact.perplexity, rel=0.05)
    assert q4.perplexity > exact.perplexity
    assert all("Paris" in v.answers[0] for v in found.variants)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    with open_gguf(found.variants[2].path) as file:
        assert {t.type for t in file.tensors if len(t.shape) > 1} == {GGMLType.Q4_0}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a second run makes nothing")

    for name in ("export", "convert", "quantize_file", "measure", "perplexity", "Generation", "plot_demo"):
        monkeypatch.setattr(demo, name, refuse)
    capsys.readouterr()
    assert main(["--cache", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"| {found.variants[1].path.name} | 138.1 | 8.51 |" in out
    assert out.rstrip().endswith(str(found.plot))
