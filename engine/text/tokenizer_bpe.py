"""Byte-level BPE ("gpt2" in GGUF files): encodes text to ids, and decodes token texts to bytes."""

import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lltool.engine.text.vocabulary_keys import TokenizerKind, VocabularyKeys, is_text
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.string_array import StringArray
from lltool.quant.convert.byte_level import BYTE_OF_CHAR
from lltool.quant.convert.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import read_flag

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_log = logging.getLogger(__name__)


def bytes_of_token(text: str, type: int = TokenType.NORMAL) -> bytes:
    """The bytes of a byte-level token of any type; a character outside the alphabet stands for its UTF-8 bytes."""
    try:
        return bytes([BYTE_OF_CHAR[char] for char in text])
    except KeyError:
        return b"".join(
            bytes([BYTE_OF_CHAR[char]]) if char in BYTE_OF_CHAR else char.encode("utf-8", "surrogateescape")
            for char in text
        )


def read_bpe(keys: VocabularyKeys) -> TokenizerKind:
    pre = find_pre_tokenizer(keys.metadata)
    encode = load_bpe(keys.mergeable if pre.ignore_merges else keys.tokens, keys.strings("merges"), pre)
    if not read_flag(keys.metadata, "composes"):
        return TokenizerKind(encode, bytes_of_token, add_bos=pre.add_bos)
    return TokenizerKind(
        lambda texts: encode([_compose(text) for text in texts]),
        bytes_of_token,
        add_bos=pre.add_bos,
        normalize=_compose,
    )


def _compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def find_pre_tokenizer(metadata: Mapping[str, Value]) -> PreTokenizer:
    """The pre-tokenizer that the file names. Raises InputError if it is unknown."""
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
    """Builds a function that encodes texts to ids. Raises InputError if merges and tokens do not match."""
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    try:
        "".join(vocabulary).encode()
    except UnicodeEncodeError:  # no merge produces a token that is not UTF-8
        vocabulary = {text: id for text, id in vocabulary.items() if is_text(text)}
    bpe = _BPE(vocabulary, _check_merges(merges, vocabulary), pre)
    return bpe.encode


# Parts of patterns that backtrack through a long run letter by letter, each with a check that rules this out first:
# the library panics after ten million steps back, and `\s+$` starts again at each letter of the run.
_CHECKS = {
    r"\s*[\r\n]": r"(?=[^\S\r\n]*+[\r\n])",  # a line end follows
    r"\s+$": r"(?<!\s)(?=\s[^\S\n]*+(?:\n|\z))",  # it is the first of its run, and an end follows
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+": (r"(?=[\p{Lu}\p{Lt}]*+[\p{Ll}\p{Lm}\p{Lo}\p{M}])"),
}


def _avoid_backtracking(pattern: str) -> str:
    """A pattern that splits text as `pattern` does, but in time linear in the length of the text."""
    for part, check in _CHECKS.items():
        pattern = pattern.replace(part, check + part)
    return pattern


# The longest text and the longest word, in characters, that are encoded here: creating the library's tokenizer takes
# as long as encoding some 100 000 characters.
_SHORT_TEXT, _SHORT_WORD = 10_000, 50


class _BPE:
    """Encodes short texts, such as prompts, with a table of merges, and long ones with the `tokenizers` library."""

    def __init__(self, vocabulary: dict[str, int], merges: list[str], pre: PreTokenizer) -> None:
        from tokenizers import Regex, pre_tokenizers

        self._vocabulary = vocabulary
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
        if len(self._ranks) < len(merges):  # the first of equal merges counts
            self._ranks = {merge: rank for rank, merge in enumerate(dict.fromkeys(merges))}
        self._ignore_merges = pre.ignore_merges
        self._pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(_avoid_backtracking(pattern)), "isolated") for pattern in pre.patterns),
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
        """Merges the pair with the lowest rank (the first one of a tie) until no pair has a rank."""
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


def _check_merges(merges: Sequence[str], vocabulary: Mapping[str, int]) -> list[str]:
    """The merges as strings "left right", checked in bulk because there are some 150 thousand."""
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
    """Whether `lines` are `count` lines with one space each."""
    data = np.frombuffer(lines, np.uint8)
    separators = data[(data == ord(" ")) | (data == ord("\n"))]
    return (
        len(separators) == 2 * count - 1
        and bool((separators[0::2] == ord(" ")).all())
        and bool((separators[1::2] == ord("\n")).all())
    )
