"""One model and many threads: every answer is that of the model alone, and nothing is lost."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.engine.model import load_model
from tests.engine import tiny_gguf
from tests.engine.stress import Stress


def run(path: Path, prompts: list[list[int]], seconds: float) -> Stress:
    with load_model(path, threads=1, context=192, sequences=24, batch=64, deterministic=True) as model:
        stress = Stress(model, prompts)
        stress.run(seconds)
        assert stress.wrong == []
        assert model.free_pages == model.setup.pages
    return stress


def test_threads_that_are_interrupted_get_the_answers_of_one(tmp_path: Path) -> None:
    keys = tiny_gguf.metadata() | tiny_gguf.vocabulary()
    path = tiny_gguf.write_model(tmp_path / "tiny.gguf", keys, tiny_gguf.tensors())
    prompts = [[(7 * i + 5 * n) % 90 for i in range(length)] for n, length in enumerate((3, 40, 64, 70, 130))]
    stress = run(path, prompts, 3)
    assert stress.done["interrupted"] > 10
    assert len(stress.by_thread) == 8
    assert min(stress.by_thread.values()) * 3 > max(stress.by_thread.values())


@pytest.mark.slow
def test_a_real_model_under_threads(real_model: Callable[[str], Path]) -> None:
    prompts = [[(7 * i + 5 * n) % 900 + 50 for i in range(length)] for n, length in enumerate((3, 17, 40, 70))]
    stress = run(real_model("smollm2-q4_1"), prompts, 30)
    assert len(stress.by_thread) == 8
    half = len(stress.resident) // 2
    late = 16 << 20  # the logits of 70 tokens take 14 MB, and an answer with so many may come for the first time late
    assert max(stress.resident[half:]) < max(stress.resident[: half + 1]) + late
