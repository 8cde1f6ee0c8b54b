"""SentencePiece BPE ("llama" in GGUF files): merges the best-scored neighbours; unknown characters become bytes."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lltool.engine.text.vocabulary_keys import TokenizerKind, VocabularyKeys
from lltool.gguf.errors import InputError
from lltool.gguf.string_array import StringArray
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import read_space_prefix

SPACE = "\u2581"

# Fields of SentencePiece's ModelProto, each with its tag byte: (number << 3 | wire type).
_PIECE, _TRAINER, _NORMALIZER = b"\x0a", b"\x12", b"\x1a"
_TEXT, _SCORE, _TYPE = 0x0A, 0x15, 0x18
_MODEL_TYPE_BPE, _BYTE_FALLBACK = b"\x18\x02", b"\x98\x02\x01"
_AS_IS = b"\x0a\x08identity\x18\x00\x20\x00\x28\x01"  # no dummy prefix, no whitespace removed, but escaped


def read_spm(keys: VocabularyKeys) -> TokenizerKind:
    scores = keys.numbers("scores", np.float32, len(keys.tokens), default=0)
    adds_space = keys.flag("add_space_prefix", True)
    return TokenizerKind(
        load_spm(keys.mergeable, scores, keys.types, keys.token("unknown")),
        bytes_of_token,
        bos=1,
        eos=2,
        add_bos=True,
        add_space_prefix=adds_space,
        drops_space=adds_space,
        # Normalized texts have ▁ for spaces, except where a later step (Metaspace) puts it.
        normalize=_escape_spaces if read_space_prefix(keys.metadata) is None else None,
    )


def _escape_spaces(text: str) -> str:
    return text.replace(" ", SPACE)


def load_spm(
    tokens: Sequence[str], scores: NDArray[np.float32], types: NDArray[np.int32], unknown: int | None
) -> Callable[[list[str]], list[list[int]]]:
    """Builds a function that encodes texts to ids.

    As in llama.cpp, a merge can produce a token of any type. Characters that are not tokens become byte tokens; in a
    vocabulary without the 256 byte tokens they become `unknown`, or are dropped if that is None. Raises InputError if
    SentencePiece refuses the vocabulary.
    """
    from sentencepiece import SentencePieceProcessor

    pieces = _unique_texts(tokens)
    has_bytes = int((types == TokenType.BYTE).sum()) == 256
    roles = np.where(types == TokenType.BYTE, TokenType.BYTE if has_bytes else TokenType.NORMAL, TokenType.NORMAL)
    # SentencePiece needs exactly one unknown token; with an extra one, the file's own stays an ordinary token.
    extra = len(pieces)
    pieces.append(_placeholder(extra))
    model = _serialize(pieces, np.append(scores, 0), np.append(roles, TokenType.UNKNOWN), has_bytes)
    try:
        processor = SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise InputError(f"tokenizer.ggml.tokens: SentencePiece refuses the vocabulary: {error}") from None

    def encode(fragments: list[str]) -> list[list[int]]:
        ids: list[list[int]] = [processor.encode(fragment) for fragment in fragments]
        if has_bytes:
            return ids
        replacement = [] if unknown is None else [unknown]
        return [[new for id in row for new in (replacement if id == extra else [id])] for row in ids]

    return encode


def bytes_of_token(text: str, type: int) -> bytes:
    """The bytes of a token: `<0x0A>` is one byte, `▁` a space. Raises InputError for a malformed byte token."""
    if type != TokenType.BYTE:
        return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")
    try:
        return bytes([int(text.removeprefix("<0x").removesuffix(">"), 16)])
    except ValueError:
        raise InputError(f"tokenizer.ggml.tokens: byte token {text!r}, wanted the form '<0x0A>'") from None


def _unique_texts(tokens: Sequence[str]) -> list[bytes]:
    """Token texts that SentencePiece accepts: UTF-8 without NUL, not empty, and only the last of equal ones."""
    if isinstance(tokens, StringArray) and len(tokens):  # the common case: the bytes of the file need no change
        joined = tokens.joined(b"\0")
        pieces = joined.split(b"\0")
        if len(set(pieces)) == len(pieces) == len(tokens) and all(pieces) and _is_utf8(joined):
            return pieces
    pieces = [b"" if any("\ud800" <= char <= "\udfff" for char in text) else text.encode() for text in tokens]
    last = dict(zip(pieces, range(len(pieces)), strict=True))
    return [
        piece if piece and b"\0" not in piece and last[piece] == id else _placeholder(id)
        for id, piece in enumerate(pieces)
    ]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _placeholder(id: int) -> bytes:
    """A token text that encoding never produces: it starts with two noncharacters that no merge joins."""
    return b"\xf4\x8f\xbf\xbf\xf4\x8f\xbf\xbf%d" % id


def _serialize(
    pieces: list[bytes], scores: NDArray[np.float32], types: NDArray[np.int64], byte_fallback: bool
) -> bytes:
    """A ModelProto, built in bulk because a loop over 262 thousand pieces would take most of the load time."""
    trainer = _MODEL_TYPE_BPE + (_BYTE_FALLBACK if byte_fallback else b"")
    tail = np.empty((len(pieces), 7), np.uint8)  # score and type of each piece
    tail[:, 0] = _SCORE
    tail[:, 1:5] = scores.astype("<f4").view(np.uint8).reshape(-1, 4)
    tail[:, 5] = _TYPE
    tail[:, 6] = types
    body = [b""] * (3 * len(pieces))
    body[0::3] = map(_Heads().__getitem__, map(len, pieces))
    body[1::3] = pieces
    body[2::3] = tail.view("S7").ravel().tolist()  # S7 drops trailing zeros, but the last byte, the type, is never zero
    return b"".join((*body, _TRAINER, bytes([len(trainer)]), trainer, _NORMALIZER, bytes([len(_AS_IS)]), _AS_IS))


class _Heads(dict[int, bytes]):
    """The bytes before a piece's text, keyed by the length of the text."""

    def __missing__(self, length: int) -> bytes:
        text = bytes([_TEXT]) + _varint(length)
        self[length] = head = _PIECE + _varint(len(text) + length + 7) + text
        return head


def _varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])
