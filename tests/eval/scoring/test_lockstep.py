"""Scores of windows equal those of one forward pass per window, however windows share batches and cache."""

from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import Model, load_model
from lltool.eval.scoring.lockstep import Window, step_windows
from lltool.gguf.errors import InputError
from tests.engine.tiny_gguf import VOCAB
from tests.eval.tiny_text_model import write_text_model

# Tokens that are not scored and those that are: short, none, longer than a batch, longer than a page, a single token.
SIZES = [(1, 1), (3, 7), (5, 0), (70, 90), (1, 0), (2, 3), (4, 4), (1, 200), (1, 0)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def load(path: Path, batch: int, sequences: int = 1) -> Model:
    return load_model(path, executor="reference", context=256, sequences=sequences, batch=batch)


def some_windows() -> list[Window]:
    random = np.random.default_rng(1)
    return [Window(random.integers(0, VOCAB, before + scored, np.int32), before) for before, scored in SIZES]


def score(models: list[Model], windows: list[Window]) -> list[np.ndarray]:
    """The scores that each model gives to all scored tokens, (models, N)."""
    out = np.full((len(models), sum(window.scored for window in windows)), np.nan)
    begun = 0
    for step in step_windows(models, windows):
        for scores, logits in zip(out, step.logits, strict=True):
            scores[step.places] = logits.score(step.targets)
        assert step.windows > begun or not step.ends
        begun = step.windows if step.ends else begun
        if step.ends:
            assert all(model.free_pages == model.setup.pages for model in models)
    assert begun == len(windows)
    return list(out)


def by_definition(path: Path, window: Window) -> np.ndarray:
    with load(path, batch=256) as model:
        x = model.forward([(model.new_sequence(), window.ids, "all")]).all().astype(float)[:-1]
    scores = x[np.arange(len(x)), window.ids[1:]] - np.log(np.exp(x).sum(axis=1))
    return np.asarray(scores[window.first - 1 :])


@pytest.fixture(scope="module")
def expected(path: Path) -> np.ndarray:
    return np.concatenate([by_definition(path, window) for window in some_windows()])


@pytest.mark.parametrize(("batch", "sequences"), [(256, 1), (256, 3), (40, 1), (33, 2), (1, 1)])
def test_scores_equal_one_forward_pass_per_window(path: Path, expected: np.ndarray, batch: int, sequences: int) -> None:
    with load(path, batch, sequences) as model:
        (found,) = score([model], some_windows())
    assert found == pytest.approx(expected, abs=1e-5)  # float32 sums


@pytest.mark.parametrize(("batch", "sequences"), [(33, 1), (256, 1)])
def test_models_of_different_batch_and_cache_stay_in_lockstep(
    path: Path, expected: np.ndarray, batch: int, sequences: int
) -> None:
    with load(path, 256, 3) as first, load(path, batch, sequences) as second:
        for found in score([first, second], some_windows()):
            assert found == pytest.approx(expected, abs=1e-5)
        assert first.calls == second.calls


def test_short_windows_share_a_batch_as_far_as_the_cache_has_room(path: Path) -> None:
    windows = [Window(np.array([1, 2, 3], np.int32), 2)] * 6
    with load(path, batch=200, sequences=1) as model:
        assert model.free_pages == 4
        assert [step.windows for step in step_windows([model], windows)] == [4, 6]
        held = model.new_sequence()
        model.evaluate(held, [1])
        assert [step.windows for step in step_windows([model], windows)] == [3, 6]
        held.free()


def test_windows_in_which_nothing_is_scored_are_read(path: Path) -> None:
    windows = [Window(np.ones(21, np.int32), 21)] * 2
    with load(path, batch=8) as model:
        steps = list(step_windows([model], windows))
        assert [(step.windows, step.ends, len(step.targets)) for step in steps] == [(1, True, 0), (2, True, 0)]
        assert model.calls == 2 * 3


def test_stopping_early_gives_the_cache_back(path: Path) -> None:
    with load(path, batch=8) as model:
        steps = step_windows([model], [Window(np.ones(20, np.int32), 1)])
        next(steps)
        del steps
        assert model.free_pages == model.setup.pages


def test_windows_longer_than_the_context_are_an_error(path: Path) -> None:
    with load(path, batch=256) as model:
        with pytest.raises(InputError, match="do not fit the context of 256"):
            score([model], [Window(np.ones(400, np.int32), 200)])
        assert model.free_pages == model.setup.pages
