"""A reader and writer for SentencePiece model files: protobuf messages, of which we need a few fields.

Field numbers come from sentencepiece_model.proto. Piece types have the numbers of `tokenizer.ggml.token_type`.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import read_bytes


class TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_UNIGRAM, _BPE = 1, 2  # TrainerSpec.model_type
_MODEL_KINDS: dict[int | bytes, str] = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class SentencePieceModel:
    """A BPE model, whose merges with higher `scores` come first, or a Unigram model (`is_unigram`).

    `add_space_prefix` puts a space before the text. `charsmap` is the precompiled map of characters.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    add_space_prefix: bool = True
    remove_extra_whitespaces: bool = False
    is_unigram: bool = False
    charsmap: bytes = b""


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a model file. Raises InputError for a file that is not a SentencePiece model of the BPE or Unigram kind."""
    pieces, scores, types = [], [], []
    trainer: dict[int, int | bytes] = {3: 1}  # the messages' defaults
    normalizer: dict[int, int | bytes] = {3: 1, 4: 1}
    try:
        data = read_bytes(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(_need_bytes(value)))
                pieces.append(_need_bytes(piece[1]).decode("utf-8", "surrogateescape"))
                scores.append(struct.unpack("<f", _need_bytes(piece.get(2, bytes(4))))[0])
                types.append(TokenType(int(piece.get(3, TokenType.NORMAL))))
            elif number == 2:
                trainer |= dict(_fields(_need_bytes(value)))
            elif number == 3:
                normalizer |= dict(_fields(_need_bytes(value)))
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise InputError(f"{path}: not a SentencePiece model, or damaged: {error}") from None
    if not pieces:
        raise InputError(f"{path}: not a SentencePiece model, or damaged: it has no token")
    if trainer[3] not in (_BPE, _UNIGRAM):
        found = _MODEL_KINDS.get(trainer[3], "unknown")
        raise InputError(f"{path}: a SentencePiece model of kind {found}, wanted bpe or unigram")
    charsmap = normalizer.get(2, b"")
    return SentencePieceModel(
        pieces,
        scores,
        types,
        bool(normalizer[3]),
        bool(normalizer[4]),
        trainer[3] == _UNIGRAM,
        charsmap if isinstance(charsmap, bytes) else b"",
    )


def write_sentencepiece(model: SentencePieceModel) -> bytes:
    """The model file for `model`, with byte fallback and without normalization except of spaces."""
    parts = []
    for piece, score, type in zip(model.pieces, model.scores, model.types, strict=True):
        raw = piece.encode("utf-8", "surrogateescape")
        parts.append(_field(1, _field(1, raw) + _key(2, _FIXED32) + struct.pack("<f", score) + _field(3, type)))
    parts.append(_field(2, _field(3, _BPE) + _field(4, len(model.pieces)) + _field(35, 1)))
    spaces = _field(3, model.add_space_prefix) + _field(4, model.remove_extra_whitespaces) + _field(5, 1)
    parts.append(_field(3, _field(1, b"identity") + spaces))
    return b"".join(parts)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The field numbers and values of a message; fixed 32- and 64-bit numbers are returned as bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            number, position = _varint(data, position)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"field of {size} bytes at byte {position} runs past the end")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"unterminated number at byte {position}")


def _need_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _key(number: int, kind: int) -> bytes:
    return _encode_varint(number << 3 | kind)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _key(number, _VARINT) + _encode_varint(value)
    return _key(number, _BYTES) + _encode_varint(len(value)) + value


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
