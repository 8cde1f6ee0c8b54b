"""Surveys: measuring models together or one by one gives the same results."""

from pathlib import Path
from typing import Any

import pytest

from lltool.engine.model import load_model
from lltool.eval.common.store import Store
from lltool.eval.divergence.divergence import divergence
from lltool.eval.scoring.perplexity import perplexity
from lltool.eval.selection import survey as survey_module
from lltool.eval.selection.survey import Questions, survey
from tests.eval.tiny_text_model import random_text, write_text_model


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """A model and two others of its vocabulary."""
    (tmp_path / "text.txt").write_text(random_text(300))
    return [write_text_model(tmp_path / f"m-{seed}.gguf", seed=seed) for seed in range(3)]


def judge(paths: list[Path], reference: Path | None, folder: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The evaluations by the file's name, and the names of the files with speeds."""
    text = paths[0].with_name("text.txt")
    questions = Questions((text,), window=64, threads=(1,), prompt=4, generation=2, repetitions=1)
    records = survey(Store(text.with_name(folder), {}), paths, reference, questions)
    evaluations = {Path(record["model"]).name: dict(record) for _, record in records if "perplexity" in record}
    return evaluations, [file for file, record in records if "avg_ts" in record]


def test_together_or_one_by_one_is_the_same(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    together, speeds = judge(paths, paths[0], "together")
    assert set(speeds) == {"speed-1.json"}
    monkeypatch.setattr(survey_module, "available_memory", lambda: 1)
    alone, speeds = judge(paths, paths[0], "alone")
    assert set(speeds) == {"speed-1-m-0.json", "speed-1-m-1.json", "speed-1-m-2.json"}
    assert list(together) == list(alone) == ["m-1.gguf", "m-2.gguf"]  # which tell the reference's perplexity too
    text = paths[0].with_name("text.txt").read_text()
    with load_model(paths[0], context=64, deterministic=True) as base:
        exact = perplexity(base, text, context=64).perplexity
        for path in paths[1:]:
            with load_model(path, context=64, deterministic=True) as model:
                expected = divergence(base, model, text, context=64)
            for found in (together[path.name], alone[path.name]):
                assert found["divergence"]["mean"] == pytest.approx(expected.mean, rel=1e-6)
                assert found["base_perplexity"] == pytest.approx(exact, rel=1e-6)


def test_perplexity_without_a_reference(paths: list[Path]) -> None:
    found, _ = judge(paths[:2], None, "none")
    for path in paths[:2]:
        with load_model(path, context=64, deterministic=True) as model:
            expected = perplexity(model, path.with_name("text.txt").read_text(), context=64)
        assert found[path.name]["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)
        assert "divergence" not in found[path.name]
    alone, _ = judge(paths[:1], paths[0], "itself")
    assert "divergence" not in alone["m-0.gguf"]
