"""Reads the keys `tokenizer.ggml.*` of a GGUF file, and says what a kind of vocabulary makes of them."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import INTEGERS, Value, ValueType
from lltool.gguf.string_array import StringArray
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import AddedTokenFlag, read_added_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_log = logging.getLogger(__name__)

NEVER = "\U0010ffff\U0010ffff."
"""A text that no merge produces, as its parts are no tokens; it begins with noncharacters."""
_NUMBERS = frozenset(ValueType) - {ValueType.STRING, ValueType.ARRAY}


@dataclass(frozen=True)
class TokenizerKind:
    """How a vocabulary of one kind (`tokenizer.ggml.model`) encodes and decodes, with its defaults.

    `encode_plain` maps texts without special tokens to the ids of each. `bytes_of_token` gives the bytes of a token
    from its text and type. `bos`, `eos` and `sep` are the ids where the file names none. With `drops_space`, the space
    that a decoded text begins with was not in the text. `normalize` is what happens to a text before added tokens
    marked as normalized are searched for in it; without `is_lossless` such steps lose part of the text.
    """

    encode_plain: Callable[[list[str]], list[list[int]]]
    bytes_of_token: Callable[[str, int], bytes]
    bos: int | None = None
    eos: int | None = None
    sep: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_sep: bool = False
    add_space_prefix: bool = False
    drops_space: bool = False
    normalize: Callable[[str], str] | None = None
    is_lossless: bool = True


def encoder_of(tokenizer: "Tokenizer") -> Callable[[list[str]], list[list[int]]]:
    """A function that encodes texts with an object of the `tokenizers` library."""

    def encode(texts: list[str]) -> list[list[int]]:
        return [row.ids for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


class VocabularyKeys:
    """Reads and checks the `tokenizer.ggml.*` keys."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self.metadata = metadata

    def _get(self, name: str, types: Collection[ValueType], what: str) -> Any:
        """A value of one of `types`; None if it is missing. Raises InputError for another type."""
        key = f"tokenizer.ggml.{name}"
        value = self.metadata.get(key)
        if value is None:
            return None
        if value.type not in types:
            raise InputError(f"{key}: found {value.type.name}, wanted {what}")
        return value.data

    def _get_array(self, name: str, items: Collection[ValueType], what: str) -> Any:
        """An array whose items have one of the types `items`, or None."""
        found = self._get(name, [ValueType.ARRAY], what)
        item = None if found is None else self.metadata[f"tokenizer.ggml.{name}"].item
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

    def bytes(self, name: str) -> bytes:
        """An array of bytes; empty if it is missing."""
        found = self._get_array(name, (ValueType.UINT8, ValueType.INT8), "an array of bytes")
        return b"" if found is None else np.asarray(found).tobytes()

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
        value = self.metadata.get(key)
        if value is None or value.type in types:
            return None if value is None else value.data
        _log.warning("%s is of type %s, wanted %s: it is ignored", key, value.type.name, what)
        return None

    @cached_property
    def tokens(self) -> Sequence[str]:
        found = self.strings("tokens")
        # Copied so that a tokenizer that outlives its model does not keep the file mapped.
        return found.copy() if isinstance(found, StringArray) else found

    @cached_property
    def types(self) -> NDArray[np.int32]:
        """The TokenType of each token, shape (V,)."""
        return self.numbers("token_type", np.int32, len(self.tokens), default=TokenType.NORMAL)

    @cached_property
    def added(self) -> dict[int, AddedTokenFlag] | None:
        return read_added_tokens(self.metadata, len(self.tokens))

    @cached_property
    def mergeable(self) -> Sequence[str]:
        """The vocabulary for encoding plain text: tokens that were only added have a text that never results."""
        added = [id for id, flag in (self.added or {}).items() if not flag & AddedTokenFlag.IN_MODEL]
        if not added:
            return self.tokens
        texts = list(self.tokens)
        for id in added:
            texts[id] = NEVER
        return texts
