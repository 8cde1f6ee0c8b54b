"""Log-likelihoods against one forward pass a text, however they share batches and cache."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.batch import PAGE
from lltool.engine.model import Model, load_model
from lltool.eval.likelihood import score_tokens
from lltool.gguf.errors import InputError
from tests.engine.tiny_gguf import VOCAB
from tests.eval.tiny_text_model import write_text_model

# Sizes of contexts and continuations: short, none, longer than a batch and than a page.
SIZES = [(1, 1), (3, 7), (5, 0), (70, 90), (1, 200), (2, 3), (4, 4)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def load(path: Path, batch: int, sequences: int = 1) -> Model:
    return load_model(path, executor="reference", context=256, sequences=sequences, batch=batch)


def some_pairs() -> list[tuple[list[int], list[int]]]:
    random = np.random.default_rng(1)
    return [tuple(random.integers(0, VOCAB, size).tolist() for size in sizes) for sizes in SIZES]


def by_definition(path: Path, context: list[int], continuation: list[int]) -> np.ndarray:
    with load(path, batch=256) as model:
        x = model.forward([(model.new_sequence(), context + continuation, "all")]).all().astype(float)
    x = x[len(context) - 1 : -1]
    return np.asarray(x[np.arange(len(continuation)), continuation] - np.log(np.exp(x).sum(axis=1)))


@pytest.mark.parametrize(("batch", "sequences"), [(256, 1), (256, 3), (40, 1), (33, 2), (1, 1)])
def test_equal_one_forward_pass_a_pair(path: Path, batch: int, sequences: int) -> None:
    pairs = some_pairs()
    with load(path, batch, sequences) as model:
        found = list(score_tokens(model, *zip(*pairs, strict=True)))
        assert len(model._pool.free) == model.setup.pages
    for (context, continuation), scores in zip(pairs, found, strict=True):
        assert scores == pytest.approx(by_definition(path, context, continuation), abs=1e-5)  # float32 sums


def test_short_pairs_share_a_batch_as_far_as_the_cache_has_room(path: Path) -> None:
    with load(path, batch=200, sequences=1) as model:  # 4 pages
        assert model.setup.pages * PAGE == 256
        list(score_tokens(model, [[1, 2]] * 6, [[3]] * 6))
        assert model.calls == 2


def test_texts_are_taken_as_they_are_needed(path: Path) -> None:
    taken = 0

    def endless() -> Iterator[list[int]]:
        nonlocal taken
        while True:
            taken += 1
            yield [1, 2]

    with load(path, batch=6) as model:
        scores = score_tokens(model, endless(), endless())
        next(scores)
        assert taken == 2 * 2  # two pairs in a batch
        del scores


def test_stopping_early_gives_the_cache_back(path: Path) -> None:
    with load(path, batch=8) as model:
        scores = score_tokens(model, [[1], [1]], [[2], [3]])
        next(scores)
        del scores
        assert len(model._pool.free) == model.setup.pages


def test_nothing_to_predict_from_is_an_error(path: Path) -> None:
    with load(path, batch=8) as model, pytest.raises(InputError, match="empty context"):
        next(score_tokens(model, [[]], [[1]]))


def test_pairs_longer_than_the_context_are_an_error(path: Path) -> None:
    with load(path, batch=256) as model, pytest.raises(InputError, match="do not fit the context of 256"):
        next(score_tokens(model, [[1] * 200], [[1] * 200]))
