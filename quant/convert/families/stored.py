"""Checked access to a GGUF file's keys when a config.json is restored from them; the counterpart of `Config`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError


@dataclass(frozen=True)
class Stored:
    """A GGUF file for `restore`: its values by key without the architecture's prefix, and the names of its tensors.

    `constants` are the values of the tensors that follow from a config, `shapes` those of all tensors.

    Methods that read a key raise InputError if it is missing without a default or has a value of the wrong kind.
    """

    architecture: str
    keys: Mapping[str, Any]
    names: frozenset[str]
    constants: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def integer(self, key: str, default: int | None = None) -> int:
        found = self.keys.get(key, default)
        self.require(key, type(found) is int and 0 < found < 2**31, "a positive integer")
        return int(found)

    def number(self, key: str, default: float | None = None) -> float:
        found = self.keys.get(key, default)
        # Within these bounds, the number can be squared or used as a divisor.
        self.require(key, type(found) in (int, float) and 1e-30 < found < 1e30, "a positive number")
        return float(found)

    def numbers(self, key: str, layers: int) -> list[float]:
        """A number for each layer."""
        found = self.keys.get(key)
        fine = isinstance(found, list) and len(found) == layers
        self.require(
            key, fine and all(type(x) in (int, float) for x in found or ()), f"a number for each of {layers} layers"
        )
        return [float(x) for x in found or ()]

    def choice(self, key: str, default: str, *allowed: str) -> str:
        found = self.keys.get(key, default)
        self.require(key, isinstance(found, str) and found in allowed, " or ".join(allowed))
        return str(found)

    def layer_types(self, layers: int, period: int = 0) -> list[str]:
        """The kind of each layer, under transformers' names. By default every `period`th layer has full attention."""
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
