"""Byte-level BPE ("gpt2" in GGUF files): text to ids through the `tokenizers` library, token texts to bytes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from lltool.gguf.string_array import StringArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_log = logging.getLogger(__name__)


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in table)
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def bytes_of_token(text: str) -> bytes:
    """The bytes that a byte-level token stands for; a character outside the alphabet stands for its UTF-8."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in text])
    except KeyError:
        return b"".join(
            bytes([_BYTE_OF_CHAR[char]]) if char in _BYTE_OF_CHAR else char.encode("utf-8", "surrogateescape")
            for char in text
        )


def find_pre_tokenizer(metadata: Mapping[str, Value]) -> PreTokenizer:
    """The pre-tokenizer that the file names. Raises InputError for one that is not known."""
    value = metadata.get("tokenizer.ggml.pre")
    if value is None:
        _log.warning("tokenizer.ggml.pre is missing: the default pre-tokenizer may split text differently")
        return PRE_TOKENIZERS["default"]
    if value.type != ValueType.STRING:
        raise InputError(f"tokenizer.ggml.pre: found {value.type.name}, wanted a string")
    found = PRE_TOKENIZERS.get(value.data)
    if found is None:
        raise InputError(
            f"tokenizer.ggml.pre: pre-tokenizer {value.data!r} is not supported; text would be split wrongly"
        )
    return found


def load_bpe(tokens: Sequence[str], merges: Sequence[str], pre: PreTokenizer) -> Callable[[list[str]], list[list[int]]]:
    """Builds the function from texts to the ids of each. Raises InputError when merges and tokens do not agree."""
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    try:
        "".join(vocabulary).encode()
    except UnicodeEncodeError:  # no merge gives a token that is not UTF-8
        vocabulary = {text: id for text, id in vocabulary.items() if text.isascii() or _is_utf8(text)}
    bpe = _BPE(vocabulary, _check_merges(merges, vocabulary), pre)
    return bpe.encode


# Up to so many characters are encoded here: making the library's tokenizer takes as long as some 100 000 of them.
_SHORT_TEXT, _SHORT_WORD = 10_000, 50


class _BPE:
    """Merges by a table alone for a prompt, the `tokenizers` library for a text."""

    def __init__(self, vocabulary: dict[str, int], merges: list[str], pre: PreTokenizer) -> None:
        from tokenizers import Regex, pre_tokenizers

        self._vocabulary = vocabulary
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
        self._ignore_merges = pre.ignore_merges
        self._pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def encode(self, fragments: list[str]) -> list[list[int]]:
        if sum(map(len, fragments)) <= _SHORT_TEXT:
            rows = [[word for word, _ in self._pre_tokenizer.pre_tokenize_str(text)] for text in fragments]
            if all(len(word) <= _SHORT_WORD for words in rows for word in words):
                return [[id for word in words for id in self._merge(word)] for words in rows]
        return [row.ids for row in self._library.encode_batch_fast(fragments, add_special_tokens=False)]

    def _merge(self, word: str) -> list[int]:
        """Merges the pair of the lowest rank, the first of equal ones, until there is none."""
        if self._ignore_merges and word in self._vocabulary:
            return [self._vocabulary[word]]
        parts = [char for char in word if char in self._vocabulary]
        last = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(f"{left} {right}", last) for left, right in pairwise(parts)]
            best = min(ranks)
            if best == last:
                break
            place = ranks.index(best)
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        return [self._vocabulary[part] for part in parts]

    @cached_property
    def _library(self) -> "Tokenizer":
        from tokenizers import Tokenizer, models

        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in self._ranks)]
        tokenizer = Tokenizer(models.BPE(self._vocabulary, pairs, ignore_merges=self._ignore_merges))
        tokenizer.pre_tokenizer = self._pre_tokenizer
        return tokenizer


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _check_merges(merges: Sequence[str], vocabulary: Mapping[str, int]) -> list[str]:
    """The strings "left right", checked in bulk as there are some 150 thousand."""
    is_token = vocabulary.__contains__
    lines = merges.joined(b"\n") if isinstance(merges, StringArray) else "\n".join(merges).encode("utf-8", "replace")
    if _are_pairs(lines, len(merges)):
        text = lines.decode("utf-8", "replace")
        parts = text.replace("\n", " ").split(" ")
        if vocabulary.keys() >= set(parts) and all(map(is_token, text.replace(" ", "").split("\n"))):
            return text.split("\n")

    for index, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        unknown = next((part for part in (left, right, left + right) if not part or not is_token(part)), None)
        if unknown is not None:
            raise InputError(f"tokenizer.ggml.merges[{index}]: {merge!r}: {unknown!r} is not in tokenizer.ggml.tokens")
    return list(merges)


def _are_pairs(lines: bytes, count: int) -> bool:
    """Whether there are `count` lines, each with one space."""
    data = np.frombuffer(lines, np.uint8)
    separators = data[(data == ord(" ")) | (data == ord("\n"))]
    return (
        len(separators) == 2 * count - 1
        and bool((separators[0::2] == ord(" ")).all())
        and bool((separators[1::2] == ord("\n")).all())
    )
