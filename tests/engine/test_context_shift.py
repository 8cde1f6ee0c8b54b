"""A context that is full: the older half goes, and what follows is what a text that begins so would give."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.generate import Dialogue, Generation
from lltool.engine.model import Model, load_model
from lltool.engine.sampling import Sampler
from lltool.quant.convert.conversion import convert
from tests.engine.server.tiny_server import write_tiny
from tests.tiny_checkpoints import make_checkpoint

CONTEXT = 64
PROMPT = np.random.default_rng(5).integers(0, 90, 20).tolist()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model with windows, and one whose convolutions have a state of fixed size."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        if kind == "windows":
            return write_tiny(folder / "model.gguf")
        return convert(make_checkpoint(kind, folder / "checkpoint"), folder / "model.gguf", "f32")

    return make


def load(path: Path) -> Model:
    return load_model(path, context=CONTEXT, threads=1, deterministic=True)


def sampler() -> Sampler:
    return Sampler(temperature=0, ignore_eos=True)


def by_hand(model: Model, keep: int, count: int) -> tuple[list[int], int]:
    """The tokens of `count` steps, each computed from the whole text of that moment, and how many were dropped."""
    text, found, dropped = list(PROMPT), list[int](), 0
    banned = [*model.tokenizer.end_of_generation]
    for _ in range(count):
        logits = model.evaluate(sequence := model.new_sequence(), text)
        sequence.free()
        logits[banned] = -np.inf
        found.append(int(logits.argmax()))
        if len(text) == CONTEXT:
            half = (CONTEXT - keep) // 2
            del text[keep : keep + half]
            dropped += half
        text.append(found[-1])
    return found, dropped


@pytest.mark.parametrize("keep", [0, 5, -1])
@pytest.mark.parametrize("kind", ["windows", "lfm2"])
def test_what_follows_is_computed_anew(model_path: Callable[[str], Path], kind: str, keep: int) -> None:
    with load(model_path(kind)) as model:
        wanted, dropped = by_hand(model, len(PROMPT) if keep < 0 else keep, 150)
        generation = Generation(Dialogue(model), PROMPT, sampler(), 150, keep=keep)
        found = [token.id for token in generation]
        assert found == wanted
        assert generation.dropped == dropped > CONTEXT
        assert generation.kept == (len(PROMPT) if keep < 0 else keep)
        assert generation.reason == "length"
        assert generation.detail == "150 tokens were asked for"


def test_a_full_context_ends_without_it(model_path: Callable[[str], Path]) -> None:
    with load(model_path("windows")) as model:
        generation = Generation(Dialogue(model), PROMPT, sampler())
        assert len(list(generation)) == CONTEXT - len(PROMPT) + 1
        assert (generation.reason, generation.detail) == ("length", "the context of 64 tokens is full")
        assert generation.dropped == 0


def test_there_must_be_something_to_drop(model_path: Callable[[str], Path]) -> None:
    """If all but one token are kept, a full context ends the text after all."""
    with load(model_path("windows")) as model:
        generation = Generation(Dialogue(model), [*PROMPT, *PROMPT, *PROMPT, 1, 2, 3], sampler(), keep=-1)
        assert len(list(generation)) == 2
        assert generation.reason == "length"


def test_a_long_text_does_not_grow(model_path: Callable[[str], Path]) -> None:
    with load(model_path("windows")) as model:
        dialogue = Dialogue(model)
        generation = Generation(dialogue, PROMPT, sampler(), 1000, keep=0)
        for _ in generation:
            assert len(dialogue.ids) <= CONTEXT
        assert generation.timings.tokens == 1000
        assert model.free_pages == model.setup.pages - 1
