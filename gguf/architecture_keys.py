"""Checked access to the metadata keys that describe a model's architecture."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lltool.gguf.describe import plain_value
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType

_SHOWN_ITEMS = 16
MAX_NUMBER = 1e30  # the largest number that is allowed, because it is used in float32 arithmetic

SCALES = (1e-9, 1e9)
"""Bounds of scaling factors. Beyond them float32 overflows or underflows; only a damaged file has such factors."""


class ArchitectureKeys:
    """The `<architecture>.` keys of a file; it records which keys were read, so that unread ones can be refused."""

    def __init__(self, metadata: Mapping[str, Value], architecture: str) -> None:
        self.prefix = f"{architecture}."
        self.values = {k.removeprefix(self.prefix): v for k, v in metadata.items() if k.startswith(self.prefix)}
        self.read: set[str] = set()
        self.further = 0  # blocks that do not run; a list may have their numbers after those of the layers

    def raw(self, key: str) -> Any:
        """The value's data, or None if the key is absent. A list with one equal number per layer counts as that number.

        Raises InputError for a list whose numbers differ.
        """
        self.read.add(key)
        value = self.values.get(key)
        if value is None:
            return None
        if value.item not in (None, ValueType.STRING, ValueType.BOOL, ValueType.ARRAY):
            numbers = set(np.asarray(value.data).tolist())
            self.expect(key, len(numbers) == 1, "one value for all layers")
            return numbers.pop()
        return value.data

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        found = self._get(key, default)
        whole = isinstance(found, int) and not isinstance(found, bool)
        self.expect(key, whole and minimum <= found < 2**31, f"an integer from {minimum}")
        return int(found)

    def number(self, key: str, default: float | None = None, low: float = 0.0, high: float = MAX_NUMBER) -> float:
        """A number from `low` to `high`. Where the default is 0, which means "none", 0 is accepted too.

        Raises InputError for anything else.
        """
        found = self._get(key, default)
        plain = isinstance(found, int | float) and not isinstance(found, bool)
        fine = plain and (low <= found <= high or (default == 0 and found == 0))
        self.expect(key, fine, f"a number from {low:g} to {high:g}")
        return float(found)

    def count(self, key: str, default: int) -> int:
        """An integer of at least 0; the first layer's value if each layer has its own. Raises InputError otherwise."""
        self.read.add(key)
        value = self.values.get(key)
        if value is None or (value.item is not None and len(value.data) == 0):
            return default
        found = value.data if value.item is None else value.data[0]
        whole = isinstance(found, int | np.integer) and not isinstance(found, bool | np.bool_)
        self.expect(key, whole and 0 <= found < 2**31, "an integer from 0")
        return int(found)

    def numbers(self, key: str, count: int, *, or_minus_infinity: bool = False) -> list[float]:
        """A finite number, or minus infinity, for each of `count` layers. Raises InputError for anything else."""
        self.read.add(key)
        value = self.values.get(key)
        is_list = value is not None and value.item in (ValueType.FLOAT32, ValueType.FLOAT64)
        found = np.asarray(value.data if value is not None and is_list else (), np.float64)
        fine = len(found) == count and bool(
            np.all((np.abs(found) <= MAX_NUMBER) | (or_minus_infinity & (found == -np.inf)))
        )
        self.expect(key, fine, f"a number for each of {count} layers")
        return [float(x) for x in found]

    def integers(self, key: str, count: int, default: int) -> list[int]:
        """An integer of at least 0 for each of `count` layers; a single one is that of all.

        Raises InputError for anything else.
        """
        self.read.add(key)
        value = self.values.get(key)
        found: Any = default if value is None else value.data
        each: list[Any] = [found] * count if value is None or value.item is None else list(found)
        whole = all(isinstance(x, int | np.integer) and not isinstance(x, bool) and 0 <= x < 2**31 for x in each)
        fine = whole and len(each) in (count, count + self.further)
        self.expect(key, fine, f"an integer from 0 for each of {count} layers")
        return [int(x) for x in each[:count]]

    def text(self, key: str, default: str) -> str:
        found = self._get(key, default)
        self.expect(key, isinstance(found, str), "a string")
        return str(found)

    def flag(self, key: str, default: bool) -> bool:
        found = self._get(key, default)
        self.expect(key, isinstance(found, bool | np.bool_), "true or false")
        return bool(found)

    def expect(self, key: str, fine: bool, wanted: str) -> None:
        if not fine:
            raise InputError(f"{self.prefix}{key}: found {self._show(key)}, wanted {wanted}")

    def refuse_unread(self, neutral: Mapping[str, tuple[Any, ...] | None]) -> None:
        """Raises InputError for a key that was not read, because to ignore an unknown key would be a guess.

        `neutral` maps keys that may stay unread to the values at which they have no effect (None: any value).
        """
        for key in sorted(self.values.keys() - self.read):
            found = self.values[key].data
            if key not in neutral:
                raise InputError(f"{self.prefix}{key}: found {self._show(key)}, but this version does not know the key")
            allowed = neutral[key]
            if allowed is not None and (isinstance(found, np.ndarray) or found not in allowed):
                wanted = f"this version runs models with {allowed[-1]} only"
                raise InputError(f"{self.prefix}{key}: found {self._show(key)}, {wanted}")

    def _get(self, key: str, default: Any) -> Any:
        found = self.raw(key)
        self.expect(key, found is not None or default is not None, "a value")
        return default if found is None else found

    def _show(self, key: str) -> str:
        """The value as text for a one-line error message."""
        if key not in self.values:
            return "nothing"
        return show(self.values[key])


def show(value: Value) -> str:
    """A value as text for a one-line error message, at most 60 characters."""
    return " ".join(repr(plain_value(value, _SHOWN_ITEMS)).split())[:60]
