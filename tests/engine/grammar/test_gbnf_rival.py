"""Masks of GBNF against llama.cpp's own, over all tokens, step by step."""

import ctypes
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.grammar.compiler import GrammarCompiler
from lltool.engine.grammar.constraint import Constraint
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.reader import open_gguf
from lltool.quant.convert.vocabulary import read_vocabulary
from tests.engine.grammar.grammars import GRAMMARS
from tests.engine.grammar.rival import Oddities, RivalGrammar
from tests.engine.test_sampling_rival import llama
from tests.engine.text.test_tokenizer_rival import Rival
from tests.tiny_tokenizers import TOKENIZERS

pytestmark = pytest.mark.rival

__all__ = ["llama"]  # the fixture

VOCABULARIES = ("tiny", "gpt-2", "llama-bpe", "llama-spm", "phi-3")
SHIPPED = ("arithmetic", "c", "chess", "english", "japanese", "json", "json_arr", "list")
STEPS = 14


class Pair:
    """A vocabulary in both programs."""

    def __init__(self, llama: ctypes.CDLL, rival: Rival, tokenizer: Tokenizer) -> None:
        self.llama, self.rival, self.tokenizer = llama, rival, tokenizer
        self.compiler = GrammarCompiler(tokenizer, tokenizer.size)
        self.oddities = Oddities(rival, tokenizer)

    def compare(self, grammar: str, seed: int) -> dict[str, int]:
        """Follows a random text and compares every mask; returns how many tokens differ for a known reason."""
        draw, found, text = random.Random(seed), dict[str, int](), b""
        matcher = self.compiler.matcher(Constraint.grammar(grammar))
        theirs = RivalGrammar(self.llama, self.rival.vocabulary, self.tokenizer.size, grammar)
        try:
            for _ in range(STEPS):
                mask = matcher.allowed()
                assert mask is not None
                ours = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.tokenizer.size].astype(bool)
                expected = theirs.allowed()
                unknown, known = self.oddities.explain(ours, expected, text)
                pieces = [(id, self.oddities.pieces[id], "ours" if ours[id] else "theirs") for id in unknown[:10]]
                assert not unknown, f"after {text!r}: {len(unknown)} tokens, {pieces}"
                found = {reason: found.get(reason, 0) + count for reason, count in known.items()}
                both = [id for id in np.flatnonzero(ours & expected) if id not in self.tokenizer.end_of_generation]
                if not both:
                    break
                id = int(draw.choice(both))
                matcher.accept(id)
                theirs.accept(id)
                text += self.oddities.pieces[id]
                if matcher.is_complete:
                    break
        finally:
            theirs.free()
        return found


@pytest.fixture(scope="module", params=VOCABULARIES)
def pair(
    request: pytest.FixtureRequest,
    llama: ctypes.CDLL,
    golden_file: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    folder = tmp_path_factory.mktemp("vocabulary")
    if request.param == "tiny":
        name = next(iter(TOKENIZERS))
        config = TOKENIZERS[name](folder)
        keys = read_vocabulary(folder, config, 400).metadata()
    else:
        with open_gguf(golden_file(f"vocab/ggml-vocab-{request.param}.gguf")) as file:
            keys = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    rival = Rival.load(llama, folder / "model.gguf", keys)
    assert rival
    return Pair(llama, rival, Tokenizer.from_gguf(keys))


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAMMARS)
def test_masks(pair: Pair, name: str) -> None:
    for seed in range(2):
        pair.compare(GRAMMARS[name], seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_masks_of_shipped_grammars(pair: Pair, name: str) -> None:
    tree = os.environ.get("LLAMA_CPP_TREE")
    if not tree:
        pytest.skip("LLAMA_CPP_TREE names no sources of llama.cpp")
    pair.compare((Path(tree) / "grammars" / f"{name}.gbnf").read_text(), 0)
