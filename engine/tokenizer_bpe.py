"""Byte-level BPE ("gpt2" in GGUF files): text to ids through the `tokenizers` library, token texts to bytes."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from lltool.gguf.string_array import StringArray

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
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {text: id for id, text in enumerate(tokens)}
    try:
        "".join(vocabulary).encode()
    except UnicodeEncodeError:  # no merge gives a token that is not UTF-8
        vocabulary = {text: id for text, id in vocabulary.items() if text.isascii() or _is_utf8(text)}
    pairs = _split_merges(merges, vocabulary)

    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )

    def encode(fragments: list[str]) -> list[list[int]]:
        encodings = tokenizer.encode_batch_fast(fragments, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return encode


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _split_merges(merges: Sequence[str], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs of "left right" strings, split and checked in bulk as there are some 150 thousand."""
    is_token = vocabulary.__contains__
    lines = merges.joined(b"\n") if isinstance(merges, StringArray) else "\n".join(merges).encode("utf-8", "replace")
    if _are_pairs(lines, len(merges)):
        text = lines.decode("utf-8", "replace")
        parts = text.replace("\n", " ").split(" ")
        if vocabulary.keys() >= set(parts) and all(map(is_token, text.replace(" ", "").split("\n"))):
            return list(zip(parts[::2], parts[1::2], strict=True))

    pairs = []
    for index, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        unknown = next((part for part in (left, right, left + right) if not part or not is_token(part)), None)
        if unknown is not None:
            raise InputError(f"tokenizer.ggml.merges[{index}]: {merge!r}: {unknown!r} is not in tokenizer.ggml.tokens")
        pairs.append((left, right))
    return pairs


def _are_pairs(lines: bytes, count: int) -> bool:
    """Whether there are `count` lines, each with one space."""
    data = np.frombuffer(lines, np.uint8)
    separators = data[(data == ord(" ")) | (data == ord("\n"))]
    return (
        len(separators) == 2 * count - 1
        and bool((separators[0::2] == ord(" ")).all())
        and bool((separators[1::2] == ord("\n")).all())
    )
