"""Our own GGUF keys for tokenizer properties that the standard keys cannot express. Other readers ignore them.

- `lltool.tokenizer.added_tokens` (uint32 array): ids of the tokens that are matched in a text before anything else:
  leftmost first, and the longest of those that begin at the same place.
- `lltool.tokenizer.added_token_flags` (uint32 array, one item for each of those ids): sums of AddedTokenFlag values.
- `lltool.tokenizer.space_prefix` (string): where a space is put before a text, if not as `add_space_prefix` states;
  see SpacePrefix.
- `lltool.tokenizer.splits_words` (bool): a Unigram vocabulary splits texts at all white space, not only at spaces.
- `lltool.tokenizer.end_ids` (uint32 array): all tokens at which generation ends.
"""

from collections.abc import Mapping
from enum import IntFlag, StrEnum
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import INTEGERS, Value, ValueType, array, boolean, string

_ADDED, _FLAGS = "lltool.tokenizer.added_tokens", "lltool.tokenizer.added_token_flags"
EMBEDDED_KEY = "tokenizer.huggingface.json"
"""The key of a whole tokenizer.json (GGUF's specification); if a file has it, it says how text becomes ids."""
EMBEDDED_MODEL, EMBEDDED_PRE = "huggingface", "embedded"
"""`tokenizer.ggml.model` and `.pre` if no known value is near; other programs refuse such a file."""
_SPLITS_WORDS = "lltool.tokenizer.splits_words"
_SPACE_PREFIX, _END_IDS = "lltool.tokenizer.space_prefix", "lltool.tokenizer.end_ids"


class AddedTokenFlag(IntFlag):
    """The flags of an added token in a tokenizer.json.

    LSTRIP and RSTRIP: the token absorbs the white space on that side. SINGLE_WORD: it is not matched within a word.
    NORMALIZED: it is matched after the others, in normalized text. IN_MODEL is our own flag: the token is also in the
    model's vocabulary, so merges can produce it.
    """

    NONE = 0
    LSTRIP = 1
    RSTRIP = 2
    SINGLE_WORD = 4
    NORMALIZED = 8
    IN_MODEL = 16


class SpacePrefix(StrEnum):
    """Where a Metaspace step puts a space if there is none yet; `add_space_prefix` means one in any case."""

    ALWAYS = "always"  # before each text between added tokens
    FIRST = "first"  # only before text at the very beginning
    NEVER = "never"


def describe_added_tokens(flags: Mapping[int, AddedTokenFlag]) -> dict[str, Value]:
    """The keys for added tokens, given by id; no keys if there are no added tokens."""
    if not flags:
        return {}
    ids = sorted(flags)
    return {
        _ADDED: array(ValueType.UINT32, np.array(ids, np.uint32)),
        _FLAGS: array(ValueType.UINT32, np.array([int(flags[id]) for id in ids], np.uint32)),
    }


def describe_space_prefix(prefix: SpacePrefix | None) -> dict[str, Value]:
    return {} if prefix is None else {_SPACE_PREFIX: string(prefix.value)}


def describe_splits_words(splits: bool) -> dict[str, Value]:
    return {_SPLITS_WORDS: boolean(True)} if splits else {}


def describe_end_ids(ids: list[int]) -> dict[str, Value]:
    return {_END_IDS: array(ValueType.UINT32, np.array(ids, np.uint32))} if ids else {}


def read_added_tokens(metadata: Mapping[str, Value], count: int) -> dict[int, AddedTokenFlag] | None:
    """Flags by id, or None for a file without the keys. Raises InputError for ids of `count` or more and bad flags."""
    ids, flags = _integers(metadata, _ADDED), _integers(metadata, _FLAGS)
    if ids is None or flags is None:
        return None
    if len(ids) != len(flags):
        raise InputError(f"{_FLAGS}: {len(flags)} items for {len(ids)} ids in {_ADDED}")
    _check_ids(_ADDED, ids, count)
    known = int(~AddedTokenFlag(0))
    if strange := [flag for flag in flags if not 0 <= flag <= known]:
        raise InputError(f"{_FLAGS}: found {strange[0]}, wanted sums of 1, 2, 4, 8 and 16")
    return {id: AddedTokenFlag(flag) for id, flag in zip(ids, flags, strict=True)}


def read_space_prefix(metadata: Mapping[str, Value]) -> SpacePrefix | None:
    value = metadata.get(_SPACE_PREFIX)
    if value is None:
        return None
    if value.data not in [prefix.value for prefix in SpacePrefix]:
        raise InputError(f"{_SPACE_PREFIX}: found {value.data!r:.80}, wanted one of {', '.join(SpacePrefix)}")
    return SpacePrefix(value.data)


def read_splits_words(metadata: Mapping[str, Value]) -> bool:
    value = metadata.get(_SPLITS_WORDS)
    if value is not None and value.type != ValueType.BOOL:
        raise InputError(f"{_SPLITS_WORDS}: found {value.type.name}, wanted a bool")
    return value is not None and bool(value.data)


def read_end_ids(metadata: Mapping[str, Value], count: int) -> list[int]:
    """The ids that end generation. Raises InputError for ids of `count` or more."""
    ids = _integers(metadata, _END_IDS) or []
    _check_ids(_END_IDS, ids, count)
    return ids


def _integers(metadata: Mapping[str, Value], key: str) -> list[int] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if value.type != ValueType.ARRAY or value.item not in INTEGERS:
        raise InputError(f"{key}: found {value.type.name}, wanted an array of integers")
    found: Any = value.data
    return [int(item) for item in found]


def _check_ids(key: str, ids: list[int], count: int) -> None:
    if wrong := [id for id in ids if not 0 <= id < count]:
        raise InputError(f"{key}: token {wrong[0]}, but the vocabulary has {count} tokens")
