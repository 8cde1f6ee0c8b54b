"""Converts text to token ids and back, as the metadata of a GGUF file defines it (the keys `tokenizer.ggml.*`)."""

import codecs
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lltool.engine.text import tokenizer_bpe, tokenizer_spm
from lltool.engine.text.added_tokens import AddedTokenCutter
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import INTEGERS, Value, ValueType
from lltool.gguf.reader import GGUFFile
from lltool.gguf.string_array import StringArray
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import AddedTokenFlag, read_added_tokens, read_end_ids, read_space_prefix

_log = logging.getLogger(__name__)

# Types of tokens that are matched in text as a whole, before all others.
_SPECIAL = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
_NUMBERS = frozenset(ValueType) - {ValueType.STRING, ValueType.ARRAY}

# Tokens that end an answer even if the file does not say so: llama.cpp's list without the fill-in-the-middle tokens and
# without `</s>`, which is HTML in Gemma's vocabulary; if `</s>` does end a text, the file says so.
_ENDS = """<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|>
    <|end_of_text|> <EOT> _<EOT> [EOT] [EOS] <turn|> <eos> <end_of_utterance> <｜end▁of▁sentence｜>"""


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its rules for splitting text.

    With `add_space_prefix`, a text and each text after a special token is encoded as if it began with a space.
    `cutter` splits text at special tokens if the file has lltool's own keys for that; None does it as llama.cpp does.
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
    encode_plain: Callable[[list[str]], list[list[int]]]  # maps texts without special tokens to the ids of each
    cutter: AddedTokenCutter | None = None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Value]) -> Self:
        """Raises InputError if the file has no tokenizer, or an unsupported or broken one."""
        keys = _Keys(metadata)
        kind = keys.text("model")
        if kind not in ("gpt2", "llama"):
            raise InputError(
                f"tokenizer.ggml.model: {kind!r}, wanted 'gpt2' (byte-level BPE) or 'llama' (SentencePiece)"
            )
        tokens = keys.strings("tokens")
        if isinstance(tokens, StringArray):
            tokens = tokens.copy()  # so that a tokenizer that outlives its model does not keep the file mapped
        types = keys.numbers("token_type", np.int32, len(tokens), default=TokenType.NORMAL)
        flags = read_added_tokens(metadata, len(tokens))
        is_byte_level = kind == "gpt2"
        if is_byte_level:
            pre = tokenizer_bpe.find_pre_tokenizer(metadata)
            encode_plain = tokenizer_bpe.load_bpe(
                _mergeable(tokens, flags) if pre.ignore_merges else tokens, keys.strings("merges"), pre
            )
            bos, eos = keys.token("bos"), keys.token("eos")
            add_bos = keys.flag("add_bos_token", pre.add_bos)
        else:
            scores = keys.numbers("scores", np.float32, len(tokens), default=0)
            encode_plain = tokenizer_spm.load_spm(_mergeable(tokens, flags), scores, types, keys.token("unknown"))
            bos, eos = keys.token("bos", default=1), keys.token("eos", default=2)
            add_bos = keys.flag("add_bos_token", True)

        special = {
            tokens[id]: id
            for id in np.flatnonzero(np.isin(types, (TokenType.CONTROL, TokenType.USER_DEFINED))).tolist()
        }
        ends = {special[text] for text in _ENDS.split() if text in special}
        stops = (eos, keys.token("eot"), keys.token("eom"), *read_end_ids(metadata, len(tokens)))
        add_space_prefix = keys.flag("add_space_prefix", not is_byte_level) and not is_byte_level
        return cls(
            tokens=tokens,
            types=types,
            bos=bos,
            eos=eos,
            eot=keys.token("eot"),
            add_bos=add_bos,
            add_eos=keys.flag("add_eos_token", False),
            add_space_prefix=add_space_prefix,
            end_of_generation=frozenset(ends.union(id for id in stops if id is not None)),
            is_byte_level=is_byte_level,
            encode_plain=encode_plain,
            cutter=None
            if flags is None
            else AddedTokenCutter(
                tokens,
                flags,
                is_spaced=not is_byte_level,
                adds_space=add_space_prefix,
                space_prefix=read_space_prefix(metadata),
            ),
        )

    @property
    def size(self) -> int:
        return len(self.tokens)

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        restore: Callable[[str], str] | None = None,
    ) -> list[int]:
        """The ids of `text`.

        `add_special` adds the begin and end tokens that the model wants, but no second begin token.
        User-defined tokens are always matched in the text, control tokens such as `<|im_end|>` only with
        `parse_special`. `restore` is applied to the text between control tokens, which is not searched for them again.
        Raises InputError if plain text encodes to a control token while `restore` is given.
        """
        parts = self._partition(_valid(text), parse_special, restore)
        plain = iter(self.encode_plain([part for part in parts if isinstance(part, str)]))
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(next(plain))
        if restore is not None and (merged := self._control_ids.intersection(ids).difference(parts)):
            names = ", ".join(map(repr, sorted(self.tokens[id] for id in merged)))
            raise InputError(f"the tokenizer encodes plain text as control tokens ({names}); remove them from it")
        if not add_special:
            return ids
        return self.with_begin(ids) + [id for id in [self.eos] if self.add_eos and id is not None]

    def with_begin(self, ids: list[int]) -> list[int]:
        """Puts the begin token before `ids` if the model wants it and they do not already begin with it."""
        wants = self.add_bos and self.bos is not None and ids[:1] != [self.bos]
        return [id for id in [self.bos] if wants and id is not None] + ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`, without control tokens unless `special`; bytes that are not UTF-8 become U+FFFD."""
        decoder = StreamDecoder(self, special=special, drop_space=self.add_space_prefix)
        return "".join(map(decoder.push, ids)) + decoder.flush()

    def piece(self, id: int) -> bytes:
        """The bytes of one token; of a control token, its name. Raises InputError if the id is not a token."""
        if not 0 <= id < self.size:
            raise InputError(f"token {id}: the vocabulary has {self.size} tokens")
        text, type = self.tokens[id], int(self.types[id])
        if type in _SPECIAL:
            return text.encode("utf-8", "surrogateescape")
        if self.is_byte_level:
            return tokenizer_bpe.bytes_of_token(text)
        return tokenizer_spm.bytes_of_token(text, type)

    def is_control(self, id: int) -> bool:
        """Whether a token is a signal to the model rather than text."""
        return int(self.types[id]) in (TokenType.UNKNOWN, TokenType.CONTROL)

    @cached_property
    def _special(self) -> list[tuple[str, int]]:
        """The texts and ids of the tokens that are matched before all others, longest first."""
        ids = np.flatnonzero(np.isin(self.types, _SPECIAL)).tolist()
        found = [(self.tokens[id], id) for id in ids if self.tokens[id]]
        return sorted(found, key=lambda item: -len(item[0].encode("utf-8", "surrogateescape")))

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(np.flatnonzero(self.types == TokenType.CONTROL).tolist())

    @cached_property
    def control_texts(self) -> tuple[str, ...]:
        """The texts that `parse_special` reads as control tokens."""
        return tuple(text for text, id in self._special if self.is_control(id))

    def _partition(
        self, text: str, parse_special: bool, restore: Callable[[str], str] | None = None
    ) -> list[str | int]:
        """The special tokens of `text` and the texts between them, with their leading spaces."""
        if self.cutter is not None:
            found = self.cutter.cut(text, lambda id: parse_special or int(self.types[id]) == TokenType.USER_DEFINED)
            # Restored text is not split again: a user-defined token that overlaps a control-like text is not matched.
            return [part if isinstance(part, int) or restore is None else restore(part) for part in found]
        parts = self._cut(text, parse_special)
        if restore is not None:
            pieces = [[part] if isinstance(part, int) else self._cut(restore(part), False) for part in parts]
            parts = [part for row in pieces for part in row]
        if self.add_space_prefix:
            follows_text = [False, *(isinstance(part, str) for part in parts)]
            return [
                part if isinstance(part, int) or after else " " + part
                for part, after in zip(parts, follows_text, strict=False)
            ]
        return parts

    def _cut(self, text: str, parse_special: bool) -> list[str | int]:
        """Splits `text` at special tokens: first at all matches of the longest, then the rest at the next one."""
        parts: list[str | int] = [text] if text else []
        letters = set(text)
        for token, id in self._special:
            if not letters.issuperset(token) or token not in text:
                continue
            if not parse_special and int(self.types[id]) != TokenType.USER_DEFINED:
                continue
            pieces: list[str | int] = []
            for part in parts:
                if isinstance(part, int) or token not in part:
                    pieces.append(part)
                    continue
                for i, between in enumerate(part.split(token)):
                    pieces.extend(([id] if i else []) + ([between] if between else []))
            parts = pieces
        return parts


class StreamDecoder:
    """Decodes tokens one at a time; it holds back a character until all its bytes have arrived.

    Control tokens give no text unless `special`; `drop_space` removes the space that encoding puts before a text.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False, drop_space: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = drop_space

    def push(self, id: int) -> str:
        """Adds a token and returns the text that it completes."""
        if not self._special and 0 <= id < self._tokenizer.size and self._tokenizer.is_control(id):
            return ""
        text = self._utf8.decode(self._tokenizer.piece(id))
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """Returns the rest: U+FFFD for a character that was not completed."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """Reads the tokenizer of an open file. Raises InputError naming the file and the key."""
    try:
        return Tokenizer.from_gguf(file.metadata)
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from None


def _mergeable(tokens: Sequence[str], flags: Mapping[int, AddedTokenFlag] | None) -> Sequence[str]:
    """The vocabulary for merging: tokens that were only added are replaced by a text that no merge produces."""
    added = [id for id, flag in (flags or {}).items() if not flag & AddedTokenFlag.IN_MODEL]
    if not added:
        return tokens
    texts = list(tokens)
    for id in added:
        texts[id] = "\0"
    return texts


def _valid(text: str) -> str:
    """`text` with surrogate pairs joined into characters and lone surrogates replaced by U+FFFD."""
    if re.search("[\ud800-\udfff]", text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _Keys:
    """Reads and checks the `tokenizer.ggml.*` keys."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self._metadata = metadata

    def _get(self, name: str, types: Collection[ValueType], what: str) -> Any:
        """A value of one of `types`; None if it is missing. Raises InputError for another type."""
        key = f"tokenizer.ggml.{name}"
        value = self._metadata.get(key)
        if value is None:
            return None
        if value.type not in types:
            raise InputError(f"{key}: found {value.type.name}, wanted {what}")
        return value.data

    def _get_array(self, name: str, items: Collection[ValueType], what: str) -> Any:
        """An array whose items have one of the types `items`, or None."""
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
        return np.array(found, dtype)

    def flag(self, name: str, default: bool) -> bool:
        found = self._optional(name, [ValueType.BOOL], "a bool")
        return default if found is None else bool(found)

    def token(self, name: str, default: int | None = None) -> int | None:
        key = f"{name}_token_id"
        found, size = self._optional(key, INTEGERS, "a token id"), len(self.strings("tokens"))
        if found is None:
            return default if default is not None and default < size else None
        if found in (-1, 0xFFFFFFFF):  # how files state that there is none
            return None
        if not 0 <= found < size:
            _log.warning("tokenizer.ggml.%s is %d, but there are %d tokens: it is ignored", key, found, size)
            return None
        return int(found)

    def _optional(self, name: str, types: Collection[ValueType], what: str) -> Any:
        """A value of one of `types`, or None; a value of another type is logged and ignored."""
        key = f"tokenizer.ggml.{name}"
        value = self._metadata.get(key)
        if value is None or value.type in types:
            return None if value is None else value.data
        _log.warning("%s is of type %s, wanted %s: it is ignored", key, value.type.name, what)
        return None
