"""Tensors as a checkpoint's file stores them, which for quantized weights are codes, scales and other parts."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes

PLAIN_TYPES = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16, "F64": GGMLType.F64}
"""The types of plain floats, under safetensors' names."""

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    **dict.fromkeys(("BOOL", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"), np.dtype(np.uint8)),
    "I8": np.dtype(np.int8),
    "BF16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F64": np.dtype("<f8"),
}
"""The numpy type of each stored type; types that numpy lacks have the unsigned integers of their bits."""


@dataclass(frozen=True)
class RawTensor:
    """A stored tensor; `dtype` is safetensors' name of its type. `read(start, stop)` is that of `Tensor`."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Bytes]

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    def values(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) as numbers, (stop - start, columns); all rows by default."""
        data = np.ascontiguousarray(self.read(start, self.rows if stop is None else stop))
        return data.view(NUMPY_TYPES[self.dtype])
