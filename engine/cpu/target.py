"""What an operation is added to when a program is translated for the native executor."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import CacheType
from lltool.engine.cpu import _native
from lltool.engine.cpu.fuse import FusedOps
from lltool.engine.operations.observe import Observe
from lltool.engine.program import Buffer, Operation, Program, Rows
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.codec import decode


@dataclass(frozen=True)
class Target:
    """The native executor that an operation is added to, and what the operation is fused with."""

    native: _native.Executor
    program: Program
    bases: Mapping[Rows, int]  # where the arena of each kind of row begins in the native one
    cache_types: tuple[CacheType, CacheType]  # of keys and values
    observers: list[Observe]  # those added so far
    fused: FusedOps
    group: int = -1  # the column group of the preceding linear that the operation works on; -1: it works on whole rows

    def place(self, buffer: Buffer) -> tuple[int, int]:
        """Where the buffer's values of a token begin, and how many they are."""
        assert buffer.type in (GGMLType.F32, GGMLType.I32), "the native arena holds values of 32 bits"
        offset = self.program.offsets[buffer.id]
        return (self.bases[buffer.rows] + offset if offset >= 0 else -1), buffer.width * buffer.each

    def arguments(self, op: Operation) -> dict[str, Any]:
        """The fields of an operation as named arguments: buffers as places, everything else as it is."""
        values = {field.name: getattr(op, field.name) for field in fields(op)}
        return {name: self.place(value) if isinstance(value, Buffer) else value for name, value in values.items()}

    def matrix(self, name: str) -> tuple[int, NDArray[np.uint8]]:
        weight = self.program.weights[name]
        return int(weight.type), weight.data

    def vector(self, name: str) -> NDArray[np.float32]:
        weight = self.program.weights[name]
        return np.ascontiguousarray(decode(weight.data, weight.type).reshape(-1))

    def product(
        self, out: Buffer, weight: str, bias: str | None, rows: slice = slice(None), of: tuple[int, int] = (0, 1)
    ) -> _native.Product:
        """The product with some rows of a matrix, or with one of the equal parts of each matrix of a stack."""
        type, data = self.matrix(weight)
        vector = None if bias is None else self.vector(bias)[rows]
        return _native.Product(out=self.place(out), type=type, data=data[rows], bias=vector, part=of[0], parts=of[1])
