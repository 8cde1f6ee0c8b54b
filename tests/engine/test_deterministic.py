"""With `deterministic`, a sequence's scores are the same to the bit however it is computed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.batch import Precision
from lltool.engine.model import Model, load_model

LENGTH, SCORED = 310, 12  # more pages of the cache than one thread reads alone; the last tokens are scored
Scores = NDArray[np.float32]


@pytest.fixture(scope="module", params=["int8", "f32"])
def model(request: pytest.FixtureRequest, real_model: Callable[[str], Path]) -> Iterator[Model]:
    precision: Precision = request.param
    path = real_model("smollm2-q4_1")
    with load_model(path, context=320, sequences=9, threads=2, precision=precision, deterministic=True) as model:
        yield model


@pytest.fixture(scope="module")
def texts(model: Model) -> NDArray[np.int32]:
    return np.random.default_rng(0).integers(3, model.config.vocab, (8, LENGTH), np.int32)


@pytest.fixture(scope="module")
def alone(model: Model, texts: NDArray[np.int32]) -> Scores:
    """Of the first text at once, (SCORED, V)."""
    return in_pieces(model, texts[0], [LENGTH])


def in_pieces(model: Model, text: NDArray[np.int32], sizes: Sequence[int]) -> Scores:
    assert sum(sizes) == len(text)
    sequence = model.new_sequence()
    rows = []
    for size in sizes:
        start = sequence.length
        wanted = np.arange(max(0, len(text) - SCORED - start), size)
        rows.append(model.forward([(sequence, text[start : start + size], wanted)]).all())
    sequence.free()
    return np.concatenate(rows)


@pytest.mark.parametrize(
    "sizes",
    [
        [LENGTH - SCORED, *[1] * SCORED],
        [*[3] * 4, LENGTH - 18, *[3] * 2],
        [*[64] * 4, 54],
        [1, 8, 9, 15, 16, 17, 31, 33, 180],
    ],
    ids=["ones", "threes", "pages", "mixed"],
)
def test_a_prompt_can_be_cut_anywhere(
    model: Model, texts: NDArray[np.int32], alone: Scores, sizes: Sequence[int]
) -> None:
    np.testing.assert_array_equal(in_pieces(model, texts[0], sizes), alone)


def test_other_sequences_of_a_batch_change_nothing(model: Model, texts: NDArray[np.int32], alone: Scores) -> None:
    """Prompts of several lengths together, then tokens one by one."""
    sequences = [model.new_sequence() for _ in texts]
    prompts = [LENGTH - SCORED, 1, 7, 40, 33, 64, 2, 65]
    order = [3, 1, 0, 5, 4, 2, 7, 6]
    model.forward([(sequences[i], texts[i, : prompts[i]], "none") for i in order])
    rows = []
    for step in range(SCORED):
        pieces = [(sequences[i], texts[i, prompts[i] + step :][:1], "all") for i in order]
        rows.append(model.forward(pieces).all()[order.index(0)])
    for sequence in sequences:
        sequence.free()
    np.testing.assert_array_equal(np.stack(rows), alone)


def test_few_logits_are_those_of_many(model: Model, texts: NDArray[np.int32], alone: Scores) -> None:
    """The head's rows are fewer than the body's."""
    sequence = model.new_sequence()
    rows = model.forward([(sequence, texts[0], np.array([LENGTH - 9, LENGTH - 2]))]).all()
    sequence.free()
    np.testing.assert_array_equal(rows, alone[[-9, -2]])
