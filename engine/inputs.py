"""Checks of the arguments that callers pass to the engine."""

from collections.abc import Sequence
from numbers import Real
from operator import index
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError


def whole_number(name: str, value: object, low: int | None = None) -> int:
    """`value` as an int. Raises TypeError if it is not a whole number and InputError if it is below `low`."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} {value!r}, wanted a whole number")
    number = index(value)
    if low is not None and number < low:
        raise InputError(f"{name} {number}, wanted at least {low}")
    return number


def real_number(name: str, value: object) -> None:
    """Raises TypeError if `value` is not a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} {value!r}, wanted a number")


def token_ids(tokens: Sequence[int] | NDArray[np.integer], vocab: int) -> NDArray[np.int32]:
    """`tokens` as ids (T,). Raises TypeError if they are not whole numbers, InputError for one not in [0, `vocab`)."""
    if isinstance(tokens, (str, bytes)):
        raise TypeError(f"{_abbreviate(tokens)} is text, wanted token ids; the model's `tokenizer.encode` makes them")
    if not isinstance(tokens, (np.ndarray, Sequence)):
        _refuse(tokens)
    try:
        ids = np.asarray(tokens)
    except (ValueError, OverflowError):  # rows of different lengths
        _refuse(tokens)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu" and not all(map(_is_whole, tokens))):
        _refuse(tokens)
    if ids.dtype.kind in "iu":
        unknown = ids.astype(np.int64, copy=False).view(np.uint64) >= vocab  # negative ids become very large
        first = ids[unknown][0] if np.count_nonzero(unknown) else None
    else:  # ids that are too large for numpy's integer types
        first = next((id for id in tokens if not 0 <= id < vocab), None)
    if first is not None:
        raise InputError(f"token id {first}, wanted one from 0 to {vocab - 1}")
    return ids.astype(np.int32)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _refuse(tokens: object) -> NoReturn:
    raise TypeError(f"token ids {_abbreviate(tokens)}, wanted whole numbers in a list or a one-dimensional array")


def _abbreviate(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
