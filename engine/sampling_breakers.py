"""The texts at which repetitions end for DRY, as tokens."""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lltool.engine.text.tokenizer import Tokenizer

Breaker = tuple[int, list[int]]
"""A token and those that follow it; the breaker's text begins in the first and ends in the last."""

_LONGEST_TEXT, _LONGEST_TAIL = 40, 20  # bytes and tokens, as in llama.cpp
_known: dict[int, tuple[weakref.ref["Tokenizer"], dict[tuple[str, ...], list[Breaker]]]] = {}


def breaker_tokens(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[Breaker]:
    """All tokens that have one of the texts in them, and those that end with its beginning, with the rest's tokens.

    The result for a tokenizer is kept as long as the tokenizer, for the search looks at each of its tokens.
    """
    reference, found = _known.get(id(tokenizer), (None, {}))
    if reference is None or reference() is not tokenizer:
        key, found = id(tokenizer), {}
        _known[key] = weakref.ref(tokenizer, lambda _: _known.pop(key, None)), found
    texts = tuple(texts)
    if texts not in found:
        found[texts] = _search(tokenizer, texts)
    return found[texts]


def _search(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[Breaker]:
    pieces = [tokenizer.piece(id) for id in range(tokenizer.size)]
    breakers: dict[tuple[int, tuple[int, ...]], None] = {}
    for text in texts:
        wanted = text.encode("utf-8", "surrogateescape")[:_LONGEST_TEXT]
        tails: dict[int, tuple[int, ...] | None] = {0: None}
        for length in range(1, len(wanted)):
            try:
                rest = wanted[length:].decode()
            except UnicodeDecodeError:  # no text begins within a character
                continue
            tails[length] = tuple(tokenizer.encode(rest, add_special=False)[:_LONGEST_TAIL])
        for id, piece in enumerate(pieces):
            if wanted in piece:
                breakers[id, ()] = None
                continue
            for length, tail in tails.items():
                if tail is not None and piece.endswith(wanted[:length]):
                    breakers[id, tail] = None
    return [(head, list(tail)) for head, tail in breakers]
