"""A context that is full: the older half goes, and what follows is what a text that begins so would give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.generate import Dialogue, Generation
from lltool.engine.model import Model, load_model
from lltool.engine.sampling import Sampler

CONTEXT = 64
PROMPT = np.random.default_rng(5).integers(0, 90, 20).tolist()


def load(path: Path) -> Model:
    return load_model(path, context=CONTEXT, threads=1, deterministic=True)


class Varied(Sampler):
    """Takes the likeliest of a few tokens, other ones at each step, as tiny models repeat themselves; keeps logits."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[NDArray[np.float32]] = []

    def sample(self, logits: NDArray[np.float32], mask: Any = None) -> int:
        first = len(self.rows) % 7
        self.rows.append(logits.copy())
        return first + 7 * int(logits[first:90:7].argmax())  # none of them ends the text


def by_hand(model: Model, keep: int, count: int) -> tuple[list[int], int, list[NDArray[np.float32]]]:
    """The tokens of `count` steps, each computed from the whole text of that moment, how many were dropped, logits."""
    text, found, dropped, sampler = list(PROMPT), list[int](), 0, Varied()
    for _ in range(count):
        found.append(sampler.sample(model.evaluate(sequence := model.new_sequence(), text)))
        sequence.free()
        if len(text) == CONTEXT:
            half = (CONTEXT - keep) // 2
            del text[keep : keep + half]
            dropped += half
        text.append(found[-1])
    return found, dropped, sampler.rows


@pytest.mark.parametrize("keep", [0, 5, -1])
@pytest.mark.parametrize("kind", ["windows", "lfm2"])
def test_what_follows_is_computed_anew(tiny_model: Callable[[str], Path], kind: str, keep: int) -> None:
    with load(tiny_model(kind)) as model:
        wanted, dropped, rows = by_hand(model, len(PROMPT) if keep < 0 else keep, 150)
        generation = Generation(Dialogue(model), PROMPT, sampler := Varied(), 150, keep=keep)
        assert [token.id for token in generation] == wanted
        np.testing.assert_array_equal(sampler.rows, rows)
        assert generation.dropped == dropped > CONTEXT
        assert generation.kept == (len(PROMPT) if keep < 0 else keep)
        assert generation.reason == "length"
        assert generation.detail == "150 tokens were asked for"


def test_a_full_context_ends_without_it(tiny_model: Callable[[str], Path]) -> None:
    with load(tiny_model("windows")) as model:
        generation = Generation(Dialogue(model), PROMPT, Varied())
        assert len(list(generation)) == CONTEXT - len(PROMPT) + 1
        assert (generation.reason, generation.detail) == ("length", "the context of 64 tokens is full")
        assert generation.dropped == 0


def test_there_must_be_something_to_drop(tiny_model: Callable[[str], Path]) -> None:
    """If all but one token are kept, a full context ends the text after all."""
    with load(tiny_model("windows")) as model:
        generation = Generation(Dialogue(model), [*PROMPT, *PROMPT, *PROMPT, 1, 2, 3], Varied(), keep=-1)
        assert len(list(generation)) == 2
        assert generation.reason == "length"


def test_a_long_text_does_not_grow(tiny_model: Callable[[str], Path]) -> None:
    with load(tiny_model("windows")) as model:
        dialogue = Dialogue(model)
        generation = Generation(dialogue, PROMPT, Varied(), 1000, keep=0)
        for _ in generation:
            assert len(dialogue.ids) <= CONTEXT
        assert generation.timings.tokens == 1000
        assert model.free_pages == model.setup.pages - 1
