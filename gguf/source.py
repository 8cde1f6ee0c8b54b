"""A model as it flows through `source → transforms → writer`: metadata and named lazy tensors.

GGUF files, safetensors and `.bin` checkpoints are sources; a transform takes a source and returns a source. The writer
requests rows only when it writes them, so a model is never wholly in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import GGMLType, row_bytes
from lltool.gguf.metadata import Value

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Tensor:
    """A named tensor whose bytes are read on demand.

    `shape` is in numpy order, with the contiguous axis last (GGUF's `ne` reversed). `read(start, stop)` returns rows
    [start, stop) of the tensor as a 2-D matrix, uint8 of (stop - start, row_bytes), possibly a view of a mapped file.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    read: Callable[[int, int], Bytes]

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.type, self.columns)

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    def data(self) -> Bytes:
        """The whole tensor, uint8 of (rows, row_bytes)."""
        return self.read(0, self.rows)


class Source(Protocol):
    """Metadata (GGUF keys) and tensors, in file order."""

    @property
    def metadata(self) -> Mapping[str, Value]: ...

    @property
    def tensors(self) -> Sequence[Tensor]: ...


@dataclass(frozen=True)
class Model:
    """A source whose metadata and tensors are plain values; transforms return it."""

    metadata: Mapping[str, Value]
    tensors: Sequence[Tensor]
