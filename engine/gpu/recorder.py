"""Prepares the launches of a program for a number of rows. They are replayed for every batch of that size."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import Precision
from lltool.engine.gpu.device import Argument, Device, Launch, integer, kernel_source
from lltool.engine.gpu.memory import Arena, Cache, State, vector_of
from lltool.engine.gpu.planes import PLANE_NAMES, Planes, pack
from lltool.engine.program import Buffer, Program, Rows
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.codec import decode

Bias = tuple[str, slice]  # the name of a vector, and the part of it that is added
_ITEMS = 64  # work items of a group of a kernel that takes element after element
FEW = 8  # rows that are multiplied one by one; more go into tiles
_TOKENS = (1, 2, 4, 8)  # the numbers of rows that kernels for few are compiled for
_LANES, _ROWS, _TILE, _SIDE = 32, 4, 64, 16  # as kernels/linear.h has them


class Weights:
    """The weights of a program on a device, uploaded when they are first used."""

    def __init__(self, device: Device, program: Program, threads: int) -> None:
        self._device, self._program, self._threads = device, program, threads
        self._planes: dict[str, tuple[Planes, list[Any]]] = {}
        self._vectors: dict[str, Any] = {}
        self.bytes = 0

    def matrix(self, name: str) -> tuple[Planes, list[Any]]:
        """A matrix, and the memories of its parts in the order of the kernels' parameters."""
        if name not in self._planes:
            planes = pack(self._program.weights[name], self._threads)
            names = ["values"] if planes.form is None else [PLANE_NAMES[bits] for bits in (4, 2, 1, 8)]
            names += ["scale", "scale_factor", "min", "min_factor"]
            parts = [self._put(planes.arrays[part]) for part in names if part in planes.arrays]
            self._planes[name] = (Planes(planes.form, planes.rows, planes.columns), parts)
        return self._planes[name]

    def vector(self, key: str, make: Callable[[], NDArray[Any] | Sequence[float]]) -> Any:
        """The memory of a vector, which is made when it is first wanted."""
        if key not in self._vectors:
            self._vectors[key] = self._put(vector_of(make()))
        return self._vectors[key]

    def values(self, name: str) -> NDArray[np.float32]:
        """A small weight, decoded, in its shape."""
        weight = self._program.weights[name]
        return decode(weight.data, weight.type).reshape(weight.shape)

    def _put(self, array: NDArray[Any]) -> Any:
        memory = self._device.allocate(array.nbytes)
        self._device.upload(memory, array)
        self.bytes += array.nbytes
        return memory


class Recorder:
    """Takes the operations of a program one after another, and keeps the launches that compute them."""

    def __init__(
        self,
        device: Device,
        program: Program,
        weights: Weights,
        arena: Arena,
        cache: Cache,
        state: State,
        scratch: dict[str, tuple[int, Any]],
        counts: dict[Rows, int],
        most: dict[Rows, int],
        precision: Precision,
        head_dim: int,
        embed: Callable[[Any], None],  # takes an operation that looks rows up, of the batch that is computed
    ) -> None:
        self.device, self.program, self.weights, self.arena = device, program, weights, arena
        self.cache, self.state, self.precision, self.embed = cache, state, precision, embed
        self.tokens = counts[Rows.TOKEN]
        self.launches: list[Launch] = []
        self._counts, self._most, self._scratch = counts, most, scratch
        self._common = kernel_source(["elementwise", "attention", "experts"], {"HEAD_DIM": head_dim})

    def place(self, buffer: Buffer) -> int:
        return self.arena.place(buffer)

    def rows(self, buffer: Buffer) -> int:
        """The rows that a buffer has now; of expert assignments, the tokens."""
        return self._counts[buffer.rows]

    def most(self, buffer: Buffer) -> int:
        return self._most[buffer.rows]

    def values(self, name: str) -> NDArray[np.float32]:
        return self.weights.values(name)

    def vector(self, name: str | None) -> tuple[Any, np.int32]:
        """The memory of a small weight, and whether there is one."""
        if name is None:
            return None, integer(0)
        return self.weights.vector(name, lambda: self.values(name)), integer(1)

    def constant(self, values: Sequence[float]) -> Any:
        """The memory of some constants."""
        return self.weights.vector(repr(values), lambda: values)

    def scratch(self, name: str, size: int) -> Any:
        """Memory for what a launch hands to the next one; it grows before the first launch that is prepared with it."""
        found, memory = self._scratch.get(name, (0, None))
        if found < size:
            memory = self.device.allocate(size)
            self._scratch[name] = (size, memory)
        return memory

    def launch(self, kernel: str, groups: Sequence[int], items: Sequence[int], *arguments: Argument) -> None:
        """A launch of a kernel that does not read a matrix; its first parameter is the arena."""
        prepared = self.device.prepare(self._common, kernel, groups, items, (self.arena.memory, *arguments))
        self.launches.append(prepared)

    def each(self, kernel: str, n: int, *arguments: Argument) -> None:
        """A launch with a work item for each of n elements."""
        self.launch(kernel, [-(-n // _ITEMS)], [_ITEMS], *arguments)

    def copy(self, x: int, x_stride: int, out: int, out_stride: int, columns: int, rows: int) -> None:
        n = rows * columns
        self.each("copy_columns", n, *map(integer, (x, x_stride, out, out_stride, columns, n)))

    def product(self, x: int, stride: int, rows: int, columns: int) -> "Product":
        return Product(self, x, stride, rows, columns)


class Product:
    """Rows of x, to be multiplied with one matrix or several; they are rounded once, if at all."""

    def __init__(self, to: Recorder, x: int, stride: int, rows: int, columns: int) -> None:
        self._to, self._x, self._stride, self._rows, self._columns = to, x, stride, rows, columns
        self._rounded: tuple[Any, Any, Any] | None = None

    def launch(
        self,
        weight: str,
        bias: Bias | None,
        out: int,
        out_stride: int,
        first_row: int,
        rows: int,
        *,
        residual: int = -1,
    ) -> None:
        """The product with `rows` rows of a matrix from `first_row` on."""
        if self._rows > FEW:
            source, parts, _ = self._source(weight, 1)
            places = (residual, self._x, self._stride, out, out_stride, first_row, rows, self._columns, self._rows)
            groups, items = [-(-rows // _TILE), -(-self._rows // _TILE)], [_SIDE, _SIDE]
            arguments = (*parts, self._to.arena.memory, *self._bias(bias), *map(integer, places))
            self._to.launches.append(self._to.device.prepare(source, "matmul", groups, items, arguments))
        else:
            shape = (out, out_stride, first_row, rows, rows)
            self._launch_few(weight, self._bias(bias), residual, 1, shape, -1, self._rows)

    def launch_experts(
        self,
        weight: str,
        bias: Bias | None,
        out: int,
        rows: int,
        chosen: int,
        assignments: int,
        each: int,
        part: tuple[int, int],
    ) -> None:
        """The product of each assignment with a part of its expert's matrix; `each` assignments share a row of x.

        `part` is the part's number, and how many parts of `rows` rows a matrix has.
        """
        number, parts = part
        shape = (out, rows, number * rows, rows, parts * rows)
        self._launch_few(weight, self._bias(bias), -1, each, shape, chosen, assignments)

    def _launch_few(
        self,
        weight: str,
        bias: tuple[Any, np.int32],
        residual: int,
        each: int,
        shape: tuple[int, ...],  # place and stride of the result; first row, rows and all rows of an expert's matrix
        chosen: int,
        tokens: int,
    ) -> None:
        most = 1 if chosen >= 0 else next(count for count in _TOKENS if count >= tokens)
        source, parts, is_quantized = self._source(weight, most)
        arena = self._to.arena.memory
        ends = map(integer, (each, *shape, self._columns, chosen, tokens))
        groups, items = [-(-shape[3] // _ROWS), -(-tokens // most)], [_LANES, _ROWS]
        if is_quantized and self._to.precision == "int8":
            arguments = (*parts, arena, *self._round(), *bias, integer(residual), *ends)
            self._to.launches.append(self._to.device.prepare(source, "matvec_int8", groups, items, arguments))
        else:
            x = map(integer, (residual, self._x, self._stride))
            arguments = (*parts, arena, *bias, *x, *ends)
            self._to.launches.append(self._to.device.prepare(source, "matvec", groups, items, arguments))

    def _source(self, weight: str, tokens: int) -> tuple[str, list[Any], bool]:
        """The source of the kernels for a matrix, the memories of the matrix, and whether it is quantized."""
        planes, parts = self._to.weights.matrix(weight)
        if planes.form is None:
            type = self._to.program.weights[weight].type
            defines = {"FLOAT_BYTES": "4" if type == GGMLType.F32 else "2"}
            if type == GGMLType.BF16:
                defines["IS_BF16"] = "1"
        else:
            defines = planes.form.defines
        source = kernel_source(["weights", "linear"], {**defines, "TOKENS": tokens})
        return source, parts, planes.form is not None

    def _bias(self, bias: Bias | None) -> tuple[Any, np.int32]:
        if bias is None:
            return None, integer(0)
        name, rows = bias
        return self._to.weights.vector(f"{name} {rows}", lambda: self._to.values(name).reshape(-1)[rows]), integer(1)

    def _round(self) -> tuple[Any, Any, Any]:
        """The memories of the codes, scales and sums of the rows."""
        if self._rounded is None:
            chunks = self._columns // 32
            n = self._rows * chunks
            codes, scale, sums = (
                self._to.scratch(name, n * size) for name, size in (("codes", 64), ("scale", 4), ("sums", 8))
            )
            self._to.each("round_rows", n, codes, scale, sums, *map(integer, (self._x, self._stride, chunks, n)))
            self._rounded = (codes, scale, sums)
        return self._rounded
