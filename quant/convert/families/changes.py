"""Invertible changes between the tensors of a checkpoint and those of a GGUF file.

All are lazy: a change returns tensors that read rows of their sources when the writer asks for rows, so that memory
stays bounded however large a fused matrix or a stack of experts is. Elements of a vector count as its rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType, row_bytes
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.families.sizes import Sizes

_WINDOW = 16 << 20  # bytes of a matrix that a transposition holds beside its result
_SPARSE = 4  # rows that lie scattered over more than this many times their number are read run by run

Tensors = list[Tensor]


class Change(ABC):
    """Turns tensors of a checkpoint into tensors of a GGUF file, and back. The names of its results mean nothing.

    Raises InputError for tensors whose shape or type does not allow the change.
    """

    @abstractmethod
    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors: ...

    @abstractmethod
    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors: ...


@dataclass(frozen=True)
class Same(Change):
    """No change."""

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return list(tensors)

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return list(tensors)


@dataclass(frozen=True)
class Permute(Change):
    """Reorders rows, head by head, so that the two dimensions of a rotary pair become neighbours.

    Checkpoints rotate dimensions i and i + half of a head; GGUF files of some architectures rotate 2i and 2i + 1.
    `heads` is the number of heads, `rotated` the number of dimensions of a head that have pairs (all if empty).
    """

    heads: str
    rotated: str = ""

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [self._reorder(tensor, sizes, inverse=False) for tensor in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [self._reorder(tensor, sizes, inverse=True) for tensor in tensors]

    def _reorder(self, tensor: Tensor, sizes: Sizes, *, inverse: bool) -> Tensor:
        outputs, heads = tensor.shape[0], sizes[self.heads]
        if outputs % (2 * heads):
            raise InputError(f"{tensor.name}: {outputs} rows, wanted a multiple of 2 for each of {heads} heads")
        dim = outputs // heads
        rotated = sizes[self.rotated] if self.rotated else dim
        order = np.arange(dim)
        order[:rotated] = order[:rotated].reshape((rotated // 2, 2) if inverse else (2, rotated // 2)).T.reshape(-1)
        return take_rows(tensor, (np.arange(heads)[:, None] * dim + order).reshape(-1))


@dataclass(frozen=True)
class Map(Change):
    """Applies a function to each value; the result is float32."""

    forward: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    inverse: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [_map(tensor, self.forward) for tensor in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [_map(tensor, self.inverse) for tensor in tensors]


SAME = Same()
ADD_ONE = Map(lambda x: x + np.float32(1), lambda x: x + np.float32(-1))
"""For norms: some checkpoints multiply by 1 + weight, GGUF files by the weight."""

NEGATIVE_EXP = Map(lambda x: -np.exp(x), lambda x: np.log(-x))
"""For the decay of state-space models, whose logarithm checkpoints store."""


@dataclass(frozen=True)
class NormalizeRows(Change):
    """Divides each row by its length, for a model that does so whenever it runs. The way back leaves it as it is."""

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [_map(tensor, _normalize) for tensor in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return list(tensors)


def _normalize(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    normal: NDArray[np.float32] = (rows / np.maximum(lengths, 1e-12)[:, None]).astype(np.float32)
    return normal


@dataclass(frozen=True)
class Split(Change):
    """One fused matrix or bias becomes several: in each of `groups`, its rows are those of each part in turn.

    Without `groups`, the parts follow one another; with them, as for queries, keys and values of one head after
    another, rows of a part are collected over all groups. `parts` are numbers of rows in a group.
    """

    parts: tuple[str, ...]
    groups: str = "1"

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        (tensor,) = tensors
        rows = self._rows(sizes)
        if tensor.shape[0] != sum(map(len, rows)):
            raise InputError(f"{tensor.name}: {tensor.shape[0]} rows, wanted {' and '.join(str(len(r)) for r in rows)}")
        return [take_rows(tensor, part) for part in rows]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        rows = self._rows(sizes)
        for tensor, part in zip(tensors, rows, strict=True):
            if tensor.shape[0] != len(part):
                raise InputError(f"{tensor.name}: {tensor.shape[0]} rows, wanted {len(part)}")
        order = np.argsort(np.concatenate(rows))
        return [take_rows(concatenate(tensors), order)]

    def _rows(self, sizes: Sizes) -> list[NDArray[np.int64]]:
        """The rows of the fused matrix that each part consists of."""
        ends = np.cumsum([0, *(sizes[part] for part in self.parts)])
        first = np.arange(sizes[self.groups])[:, None] * ends[-1]
        return [(first + np.arange(begin, end)).reshape(-1) for begin, end in pairwise(ends)]


@dataclass(frozen=True)
class Gather(Change):
    """A fused matrix or bias stays one, but the rows of each part of `split` come together."""

    split: Split

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [concatenate(self.split.to_gguf(tensors, sizes))]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        (tensor,) = tensors
        return self.split.to_checkpoint(Split(_lengths(self.split, sizes)).to_gguf([tensor], sizes), sizes)


def _lengths(split: Split, sizes: Sizes) -> tuple[str, ...]:
    return tuple(str(sizes[part] * sizes[split.groups]) for part in split.parts)


@dataclass(frozen=True)
class Stack(Change):
    """Tensors of one shape, such as those of all experts, become one with a first axis of length `count`."""

    count: str

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        shape = (len(tensors), *tensors[0].shape)
        for tensor in tensors:
            if tensor.shape != shape[1:]:
                raise InputError(f"{tensor.name}: shape {tensor.shape}, but {tensors[0].name} has {shape[1:]}")
        return [replace(concatenate([_as_matrix(tensor) for tensor in tensors]), shape=shape)]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        (tensor,) = tensors
        count = sizes[self.count]
        if len(tensor.shape) < 2 or tensor.shape[0] != count:
            raise InputError(f"{tensor.name}: shape {tensor.shape}, wanted a stack of {count}")
        matrix, each = _as_matrix(tensor), tensor.rows // count
        rows = (np.arange(n * each, (n + 1) * each) for n in range(count))
        return [replace(take_rows(matrix, part), shape=tensor.shape[1:]) for part in rows]


@dataclass(frozen=True)
class Fold(Change):
    """The first axis, of n * `count`, becomes two: `count` and n."""

    count: str

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        count = sizes[self.count]
        for tensor in tensors:
            if len(tensor.shape) < 2 or tensor.shape[0] % count:
                raise InputError(f"{tensor.name}: shape {tensor.shape}, wanted a multiple of {count} rows")
        return [replace(t, shape=(count, t.shape[0] // count, *t.shape[1:])) for t in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [replace(t, shape=(t.shape[0] * t.shape[1], *t.shape[2:])) for t in tensors]


@dataclass(frozen=True)
class DropRows(Change):
    """Only the last `kept` rows of a matrix stay. There is no way back."""

    kept: str

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [take_rows(t, np.arange(t.shape[0] - sizes[self.kept], t.shape[0])) for t in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        raise InputError("rows that a file leaves out cannot be made again")


@dataclass(frozen=True)
class Squeeze(Change):
    """An axis of length 1, which is not the last, is dropped."""

    axis: int

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        for tensor in tensors:
            if not self.axis < len(tensor.shape) - 1 or tensor.shape[self.axis] != 1:
                raise InputError(f"{tensor.name}: shape {tensor.shape}, wanted length 1 of axis {self.axis}")
        return [replace(t, shape=t.shape[: self.axis] + t.shape[self.axis + 1 :]) for t in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [replace(t, shape=(*t.shape[: self.axis], 1, *t.shape[self.axis :])) for t in tensors]


@dataclass(frozen=True)
class Transpose(Change):
    """The last two axes change places."""

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [_transpose(tensor) for tensor in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [_transpose(tensor) for tensor in tensors]


@dataclass(frozen=True)
class Each(Change):
    """A change of its own for each tensor."""

    changes: tuple[Change, ...]

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        pairs = zip(self.changes, tensors, strict=True)
        return [result for change, tensor in pairs for result in change.to_gguf([tensor], sizes)]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        pairs = zip(self.changes, tensors, strict=True)
        return [result for change, tensor in pairs for result in change.to_checkpoint([tensor], sizes)]


@dataclass(frozen=True)
class Inverse(Change):
    """Another change, backwards."""

    change: Change

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return self.change.to_checkpoint(tensors, sizes)

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return self.change.to_gguf(tensors, sizes)


class Chain(Change):
    """Changes one after the other, in the order from checkpoint to GGUF."""

    def __init__(self, *changes: Change) -> None:
        self.changes = changes

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        for change in self.changes:
            tensors = change.to_gguf(tensors, sizes)
        return list(tensors)

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        for change in reversed(self.changes):
            tensors = change.to_checkpoint(tensors, sizes)
        return list(tensors)


def take_rows(tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """The given rows of a matrix, or elements of a vector. Raises InputError for a tensor of more axes."""
    if len(tensor.shape) > 2:
        raise InputError(f"{tensor.name}: shape {tensor.shape}, wanted a matrix")
    if len(tensor.shape) == 1:
        count, size = tensor.shape[0], row_bytes(tensor.type, 1)

        def read_items(start: int, stop: int) -> Bytes:
            items: Bytes = (
                tensor.read(start, stop)
                .reshape(stop - start, count, size)[:, rows]
                .reshape(stop - start, len(rows) * size)
            )
            return items

        return replace(tensor, shape=(len(rows),), read=read_items)

    def read_rows(start: int, stop: int) -> Bytes:
        wanted = rows[start:stop]
        if not len(wanted):
            return tensor.read(0, 0)
        first, last = int(wanted.min()), int(wanted.max()) + 1
        if last - first == len(wanted) and (np.diff(wanted) == 1).all():
            return tensor.read(first, last)
        if last - first <= _SPARSE * len(wanted):
            return tensor.read(first, last)[wanted - first]
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        return np.concatenate([tensor.read(int(run[0]), int(run[-1]) + 1) for run in runs])

    return replace(tensor, shape=(len(rows), *tensor.shape[1:]), read=read_rows)


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of all matrices, or the elements of all vectors, in turn."""
    head = tensors[0]
    for tensor in tensors:
        if tensor.type != head.type:
            raise InputError(
                f"{tensor.name}: {tensor.type.name}, but {head.name} is {head.type.name}; "
                f"they become one tensor and must have one type"
            )
        if tensor.shape[1:] != head.shape[1:]:
            raise InputError(f"{tensor.name}: shape {tensor.shape}, but {head.name} has {head.shape}")
    shape = (sum(tensor.shape[0] for tensor in tensors), *head.shape[1:])
    if len(head.shape) == 1:
        return replace(head, shape=shape, read=lambda a, b: np.concatenate([t.read(a, b) for t in tensors], axis=1))
    ends = np.cumsum([tensor.rows for tensor in tensors])

    def read(start: int, stop: int) -> Bytes:
        parts = []
        for tensor, end in zip(tensors, ends.tolist(), strict=True):
            first, last = max(start - end + tensor.rows, 0), min(stop - end, 0) + tensor.rows
            if first < last:
                parts.append(tensor.read(first, last))
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else head.read(0, 0)

    return replace(head, shape=shape, read=read)


def _as_matrix(tensor: Tensor) -> Tensor:
    return replace(tensor, shape=(tensor.rows, tensor.columns))


def _map(tensor: Tensor, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Tensor:
    def read(start: int, stop: int) -> Bytes:
        data = np.ascontiguousarray(tensor.read(start, stop))
        match tensor.type:
            case GGMLType.F32:
                values = data.view(np.float32)
            case GGMLType.F16:
                values = data.view(np.float16).astype(np.float32)
            case GGMLType.BF16:
                values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            case GGMLType.F64:
                values = data.view(np.float64).astype(np.float32)
            case _:
                raise InputError(f"{tensor.name}: values of type {tensor.type.name}, wanted F32, F16, BF16 or F64")
        mapped: Bytes = np.ascontiguousarray(function(values), np.float32).view(np.uint8)
        return mapped

    return replace(tensor, type=GGMLType.F32, read=read)


def _transpose(tensor: Tensor) -> Tensor:
    if len(tensor.shape) < 2:
        raise InputError(f"{tensor.name}: shape {tensor.shape}, wanted a matrix to transpose")
    *outer, height, width = tensor.shape
    size = row_bytes(tensor.type, 1)
    step = max(1, _WINDOW // max(1, width * size))

    def read(start: int, stop: int) -> Bytes:
        out = np.empty((stop - start, height, size), np.uint8)
        while start < stop:
            matrix, first = divmod(start, width)  # rows of the result are columns of this matrix of the stack
            last = min(width, first + stop - start)
            part = out[len(out) - (stop - start) :][: last - first]
            for top in range(0, height, step):
                bottom = min(top + step, height)
                rows = tensor.read(matrix * height + top, matrix * height + bottom).reshape(bottom - top, width, size)
                part[:, top:bottom] = rows[:, first:last].transpose(1, 0, 2)
            start += last - first
        return out.reshape(len(out), height * size)

    return replace(tensor, shape=(*outer, width, height), read=read)
