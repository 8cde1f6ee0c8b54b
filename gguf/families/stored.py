"""A GGUF file's keys, read one by one on the way back to a config.json: `Config`'s counterpart."""

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError


@dataclass(frozen=True)
class Stored:
    """A GGUF file as `restore` sees it: plain values by key without the architecture, and the names of its tensors.

    What reads a key raises InputError where it is missing and has no default, and where it is of another kind.
    """

    architecture: str
    keys: Mapping[str, Any]
    names: frozenset[str]
    rope_divisors: NDArray[np.float32] | None = None

    def integer(self, key: str, default: int | None = None) -> int:
        found = self.keys.get(key, default)
        self.require(key, type(found) is int and 0 < found < 2**31, "a positive integer")
        return int(found)

    def number(self, key: str, default: float | None = None) -> float:
        found = self.keys.get(key, default)
        # The bounds leave room to square it or divide by it.
        self.require(key, type(found) in (int, float) and 1e-30 < found < 1e30, "a positive number")
        return float(found)

    def choice(self, key: str, default: str, *allowed: str) -> str:
        found = self.keys.get(key, default)
        self.require(key, isinstance(found, str) and found in allowed, " or ".join(allowed))
        return str(found)

    def layer_types(self, layers: int, period: int = 0) -> list[str]:
        """Which layers slide, as transformers names them: all but each `period`th where the file does not say."""
        key = "attention.sliding_window_pattern"
        found: Any = self.keys.get(key, period)
        if not isinstance(found, list):
            if key in self.keys:
                period = self.integer(key)
            found = [not period or (layer + 1) % period != 0 for layer in range(layers)]
        flags = len(found) == layers and all(type(flag) in (bool, int) for flag in found)
        self.require(key, flags, f"a positive integer, or a flag for each of {layers} layers")
        return ["sliding_attention" if flag else "full_attention" for flag in found]

    def require(self, key: str, fine: bool, wanted: str) -> None:
        if not fine:
            found = f"found {short(self.keys[key])}" if key in self.keys else "missing"
            raise InputError(f"{self.architecture}.{key}: {found}, wanted {wanted}")
