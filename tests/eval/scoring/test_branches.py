"""Scores of several endings of a context equal those of separate sequences, however batches and pages are shared."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import Model, load_model
from lltool.eval.scoring.branches import Branches, EndingScores, score_branches
from lltool.gguf.errors import InputError
from tests.engine.tiny_gguf import VOCAB
from tests.eval.tiny_text_model import write_text_model

CONTEXT = 256


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def load(path: Path, batch: int, sequences: int, executor: str = "reference") -> Model:
    return load_model(
        path, executor=executor, context=CONTEXT, sequences=sequences, batch=batch, precision="f32", threads=1
    )


def some_groups() -> list[Branches]:
    """Contexts of one token, within a page, of whole pages and longer; equal ones, ones that differ; no ending."""
    random = np.random.default_rng(2)
    shots = random.integers(0, VOCAB, 150).tolist()

    def tokens(*sizes: int) -> list[list[int]]:
        return [random.integers(0, VOCAB, size).tolist() for size in sizes]

    return [
        Branches(tokens(1)[0], tokens(3, 1, 2)),
        Branches(tokens(20)[0], tokens(5)),
        Branches(shots, tokens(4, 60, 0, 7)),
        Branches(shots, tokens(9)),
        Branches(shots[:129], tokens(70, 1)),
        Branches([*shots[:140], *tokens(30)[0]], tokens(3, 3, 3, 3)),
        Branches(tokens(65)[0], [[], []]),
        Branches([*shots[:100], 1, 2, 3], tokens(100)),
        Branches(tokens(65)[0], tokens(1, 130)),
    ]


@pytest.fixture(scope="module")
def expected(path: Path) -> list[list[EndingScores]]:
    with load(path, CONTEXT, 1) as model:
        found = []
        for group in some_groups():
            scores = []
            for ending in group.endings:
                sequence = model.new_sequence()
                x = model.forward([(sequence, [*group.context, *ending], "all")]).all().astype(float)
                sequence.free()
                x = x[len(group.context) - 1 : -1]
                logprobs = x[np.arange(len(ending)), ending] - np.log(np.exp(x).sum(axis=1))
                scores.append(EndingScores(logprobs, x.argmax(axis=1) == ending))
            found.append(scores)
        return found


@pytest.mark.parametrize("executor", ["reference", "cpu"])
@pytest.mark.parametrize(("batch", "sequences"), [(256, 4), (64, 2), (50, 3), (7, 1)])
def test_scores_equal_those_of_one_sequence_per_ending(
    path: Path, expected: list[list[EndingScores]], executor: str, batch: int, sequences: int
) -> None:
    with load(path, batch, sequences, executor) as model:
        found = list(score_branches(model, some_groups(), find_best=True))
        assert len(model.new_sequence().pool.free) == model.setup.pages
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for scores, wanted in zip(mine, theirs, strict=True):
            assert scores.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)  # float32 sums in another order
            assert scores.is_best.tolist() == wanted.is_best.tolist()


def test_common_prefixes_are_computed_once(path: Path) -> None:
    random = np.random.default_rng(3)
    shots = random.integers(0, VOCAB, 200).tolist()
    groups = [Branches([*shots, number], [[1], [2]]) for number in range(10)]
    with load(path, 256, 4) as model:
        lengths: list[int] = []
        run = model.executor.run
        model.executor.run = lambda batch: (lengths.append(len(batch.tokens)), run(batch))[1]  # type: ignore[method-assign, func-returns-value]
        list(score_branches(model, groups))
    # 200 tokens once, and then the last token of each context for each of its endings.
    assert sum(lengths) == 200 + 10 * 2
    assert len(lengths) < 6  # the cache has pages for several contexts at once


def test_groups_are_taken_as_they_are_needed(path: Path) -> None:
    taken = 0

    def endless() -> Iterator[Branches]:
        nonlocal taken
        while True:
            taken += 1
            yield Branches([1, 2], [[1, 2]])

    with load(path, 6, 1) as model:
        scores = score_branches(model, endless())
        next(scores)
        assert taken == 2  # of three tokens each: a batch
        del scores


def test_stopping_early_gives_the_cache_back(path: Path) -> None:
    with load(path, 64, 2) as model:
        scores = score_branches(model, some_groups())
        next(scores)
        del scores
        assert len(model.new_sequence().pool.free) == model.setup.pages


def test_a_cache_in_use_by_others_is_an_error(path: Path) -> None:
    with load(path, CONTEXT, 1) as model:
        held = model.new_sequence()
        model.evaluate(held, [1] * 150)
        with pytest.raises(InputError, match="79 tokens take 2 pages of the cache, but 1 are free"):
            list(score_branches(model, [Branches([1] * 40, [[1] * 40, [2]])]))
        model.evaluate(held, [1] * 50)
        with pytest.raises(InputError, match="2 tokens take 1 pages of the cache, but 0 are free"):
            list(score_branches(model, [Branches([1], [[2, 3]])]))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Branches([], [[1]]), "an empty context: wanted at least one token"),
        (Branches([1] * 200, [[1] * 60]), "259 tokens do not fit the context of 256"),
        (Branches([1, VOCAB], [[1]]), f"token id {VOCAB}, wanted one from 0 to {VOCAB - 1}"),
    ],
)
def test_bad_groups_are_errors(path: Path, group: Branches, message: str) -> None:
    with load(path, CONTEXT, 1) as model:
        with pytest.raises(InputError, match=message):
            list(score_branches(model, [Branches([1, 2], [[3]]), group]))
        assert len(model.new_sequence().pool.free) == model.setup.pages
