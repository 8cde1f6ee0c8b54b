"""Text to token ids and back, as the metadata of a GGUF file defines it (the keys `tokenizer.ggml.*`)."""

import codecs
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lltool.engine import tokenizer_bpe, tokenizer_spm
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import INTEGERS, Value, ValueType
from lltool.gguf.reader import GGUFFile
from lltool.gguf.sentencepiece_model import TokenType

# Types whose tokens are found in text as a whole, before anything else.
_SPECIAL = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
_NUMBERS = frozenset(ValueType) - {ValueType.STRING, ValueType.ARRAY}

# Tokens that end an answer whether or not the file says so: llama.cpp's list without those of fill-in-the-middle and
# without `</s>`, which is HTML in Gemma's vocabulary; where it does end a text, the file says so.
_ENDS = """<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|>
    <|end_of_text|> <EOT> _<EOT> [EOT] [EOS] <turn|> <eos> <end_of_utterance> <｜end▁of▁sentence｜>"""


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and how it splits text.

    `add_space_prefix`: a text, and a text after a special token, is read as if a space came before it.
    """

    tokens: Sequence[str]
    types: NDArray[np.int32]  # (V,)
    bos: int | None
    eos: int | None
    eot: int | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    end_of_generation: frozenset[int]
    is_byte_level: bool
    encode_plain: Callable[[list[str]], list[list[int]]]  # texts without special tokens to the ids of each

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Value]) -> Self:
        """Raises InputError for a file without a tokenizer, with one of an unsupported kind, or with a broken one."""
        keys = _Keys(metadata)
        kind = keys.text("model")
        if kind not in ("gpt2", "llama"):
            raise InputError(
                f"tokenizer.ggml.model: {kind!r}, wanted 'gpt2' (byte-level BPE) or 'llama' (SentencePiece)"
            )
        tokens: Sequence[str] = keys.strings("tokens")
        types = keys.numbers("token_type", np.int32, len(tokens), default=TokenType.NORMAL)
        is_byte_level = kind == "gpt2"
        if is_byte_level:
            pre = tokenizer_bpe.find_pre_tokenizer(metadata)
            encode_plain = tokenizer_bpe.load_bpe(tokens, keys.strings("merges"), pre)
            bos, eos = keys.token("bos"), keys.token("eos")
            add_bos = keys.flag("add_bos_token", pre.add_bos)
        else:
            scores = keys.numbers("scores", np.float32, len(tokens), default=0)
            encode_plain = tokenizer_spm.load_spm(tokens, scores, types, keys.token("unknown"))
            bos, eos = keys.token("bos", default=1), keys.token("eos", default=2)
            add_bos = keys.flag("add_bos_token", True)

        special = {
            tokens[id]: id
            for id in np.flatnonzero(np.isin(types, (TokenType.CONTROL, TokenType.USER_DEFINED))).tolist()
        }
        ends = {special[text] for text in _ENDS.split() if text in special}
        stops = (eos, keys.token("eot"), keys.token("eom"))
        return cls(
            tokens=tokens,
            types=types,
            bos=bos,
            eos=eos,
            eot=keys.token("eot"),
            add_bos=add_bos,
            add_eos=keys.flag("add_eos_token", False),
            add_space_prefix=keys.flag("add_space_prefix", not is_byte_level) and not is_byte_level,
            end_of_generation=frozenset(ends.union(id for id in stops if id is not None)),
            is_byte_level=is_byte_level,
            encode_plain=encode_plain,
        )

    @property
    def size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of `text`.

        `add_special` adds the begin and end tokens that the model wants. User-defined tokens are always found in the
        text, control tokens such as `<|im_end|>` only with `parse_special`.
        """
        parts = self._partition(_valid(text), parse_special)
        plain = iter(self.encode_plain([part for part in parts if isinstance(part, str)]))
        ids: list[int] = []
        if add_special and self.add_bos and self.bos is not None:
            ids.append(self.bos)
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(next(plain))
        if add_special and self.add_eos and self.eos is not None:
            ids.append(self.eos)
        return ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `special`, bytes that are not UTF-8 become U+FFFD."""
        decoder = StreamDecoder(self, special=special, drop_space=self.add_space_prefix)
        return "".join(map(decoder.push, ids)) + decoder.flush()

    def piece(self, id: int) -> bytes:
        """The bytes of one token, control tokens by their name. Raises InputError for an id that is no token."""
        if not 0 <= id < self.size:
            raise InputError(f"token {id}: the vocabulary has {self.size} tokens")
        text, type = self.tokens[id], int(self.types[id])
        if type in _SPECIAL:
            return text.encode("utf-8", "surrogateescape")
        if self.is_byte_level:
            return tokenizer_bpe.bytes_of_token(text)
        return tokenizer_spm.bytes_of_token(text, type)

    def is_control(self, id: int) -> bool:
        """Whether a token is a signal to the model, not text."""
        return int(self.types[id]) in (TokenType.UNKNOWN, TokenType.CONTROL)

    @cached_property
    def _special(self) -> list[tuple[str, int]]:
        """Texts and ids of the tokens that are found in text before anything else, longest first."""
        ids = np.flatnonzero(np.isin(self.types, _SPECIAL)).tolist()
        found = [(self.tokens[id], id) for id in ids if self.tokens[id]]
        return sorted(found, key=lambda item: -len(item[0].encode("utf-8", "surrogateescape")))

    def _partition(self, text: str, parse_special: bool) -> list[str | int]:
        """Cuts the special tokens out of `text`: the longest first wherever it is, then the next in what is left."""
        parts: list[str | int] = [text] if text else []
        for token, id in self._special:
            if token not in text or not (parse_special or int(self.types[id]) == TokenType.USER_DEFINED):
                continue
            pieces: list[str | int] = []
            for part in parts:
                if isinstance(part, int) or token not in part:
                    pieces.append(part)
                    continue
                for i, between in enumerate(part.split(token)):
                    pieces.extend(([id] if i else []) + ([between] if between else []))
            parts = pieces
        if self.add_space_prefix:
            follows_text = [False, *(isinstance(part, str) for part in parts)]
            return [
                part if isinstance(part, int) or after else " " + part
                for part, after in zip(parts, follows_text, strict=False)
            ]
        return parts


class StreamDecoder:
    """Text of tokens as they come; a character whose bytes are not all there yet is held back.

    Control tokens give no text unless `special`; `drop_space` leaves out the space that encoding puts before a text.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False, drop_space: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = drop_space

    def push(self, id: int) -> str:
        """The text that `id` completes."""
        if not self._special and 0 <= id < self._tokenizer.size and self._tokenizer.is_control(id):
            return ""
        text = self._utf8.decode(self._tokenizer.piece(id))
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """What is left: U+FFFD for a character that was never completed."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """The tokenizer of an open file. Raises InputError naming file and key."""
    try:
        return Tokenizer.from_gguf(file.metadata)
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from None


def _valid(text: str) -> str:
    """`text` with surrogates joined to the characters they stand for, lone ones replaced by U+FFFD."""
    if re.search("[\ud800-\udfff]", text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _Keys:
    """The `tokenizer.ggml.*` keys, each checked when it is read."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self._metadata = metadata

    def _get(self, name: str, types: Collection[ValueType], what: str) -> Any:
        """A value of one of `types`, or None."""
        key = f"tokenizer.ggml.{name}"
        value = self._metadata.get(key)
        if value is None:
            return None
        if value.type not in types:
            raise InputError(f"{key}: found {value.type.name}, wanted {what}")
        return value.data

    def _get_array(self, name: str, items: Collection[ValueType], what: str) -> Any:
        """An array whose items are of one of the types, or None."""
        found = self._get(name, [ValueType.ARRAY], what)
        item = None if found is None else self._metadata[f"tokenizer.ggml.{name}"].item
        if item is not None and item not in items:
            raise InputError(f"tokenizer.ggml.{name}: found an array of {item.name}, wanted {what}")
        return found

    def text(self, name: str) -> str:
        found = self._get(name, [ValueType.STRING], "a string")
        if found is None:
            raise InputError(f"tokenizer.ggml.{name} is missing: the file has no tokenizer")
        return str(found)

    def strings(self, name: str) -> Sequence[str]:
        found: Sequence[str] | None = self._get_array(name, [ValueType.STRING], "an array of strings")
        if found is None:
            raise InputError(f"tokenizer.ggml.{name}: the array of strings is missing")
        return found

    def numbers(self, name: str, dtype: Any, size: int, default: float) -> NDArray[Any]:
        is_integer = np.issubdtype(dtype, np.integer)
        found = self._get_array(name, INTEGERS if is_integer else _NUMBERS, "an array of numbers")
        if found is None:
            return np.full(size, default, dtype)
        if len(found) != size:
            raise InputError(f"tokenizer.ggml.{name}: {len(found)} values for {size} tokens")
        return np.asarray(found, dtype)

    def flag(self, name: str, default: bool) -> bool:
        found = self._get(name, [ValueType.BOOL], "a bool")
        return default if found is None else bool(found)

    def token(self, name: str, default: int | None = None) -> int | None:
        found = self._get(f"{name}_token_id", INTEGERS, "a token id")
        size = len(self.strings("tokens"))
        if found is None:
            return default if default is not None and default < size else None
        if found == 0xFFFFFFFF:  # how files say that there is none
            return None
        if not 0 <= found < size:
            raise InputError(f"tokenizer.ggml.{name}_token_id: token {found}, the vocabulary has {size}")
        return int(found)
