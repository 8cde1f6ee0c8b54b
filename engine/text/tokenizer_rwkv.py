"""RWKV's vocabulary ("rwkv" in GGUF files): at each byte of a text, the longest token that is there."""

import re
from collections.abc import Callable

from lltool.engine.text.vocabulary_keys import TokenizerKind, VocabularyKeys
from lltool.quant.convert.sentencepiece_model import TokenType

_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_SHORT = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def read_rwkv(keys: VocabularyKeys) -> TokenizerKind:
    tokens = {
        bytes_of_token(text, type): id
        for id, (text, type) in enumerate(zip(keys.mergeable, keys.types.tolist(), strict=True))
        if type == TokenType.NORMAL
    }
    return TokenizerKind(_longest_match(tokens, keys.token("unknown")), bytes_of_token)


def bytes_of_token(text: str, type: int) -> bytes:
    """The bytes of a token, whose text is a Python literal of bytes without its quotes."""
    return _ESCAPE.sub(_unescape, text.encode("utf-8", "surrogateescape"))


def _unescape(match: re.Match[bytes]) -> bytes:
    found = match.group(1)
    return bytes([int(found[1:], 16)]) if len(found) == 3 else _SHORT.get(found, found)


def _longest_match(ids: dict[bytes, int], unknown: int | None) -> Callable[[list[str]], list[list[int]]]:
    """A function that encodes texts. A byte that begins no token is `unknown`, or is dropped if that is None."""
    lengths: dict[bytes, set[int]] = {}  # of the tokens, by their first two bytes
    for token in ids:
        lengths.setdefault(token[:2], set()).add(len(token))
    longest_first = {start: sorted(found, reverse=True) for start, found in lengths.items() if len(start) == 2}

    def encode_one(data: bytes) -> list[int]:
        found: list[int] = []
        place, end = 0, len(data)
        while place < end:
            for length in longest_first.get(data[place : place + 2], ()):
                id = ids.get(data[place : place + length])
                if id is not None and place + length <= end:
                    break
            else:
                length, id = 1, ids.get(data[place : place + 1], unknown)
            place += length
            if id is not None:
                found.append(id)
        return found

    return lambda texts: [encode_one(text.encode()) for text in texts]
