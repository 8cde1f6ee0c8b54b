"""The two factors of a change of low rank, and what the changes of families make of them.

A change of a family's table turns a matrix W into matrices of a file. Applied to W + up @ down, it must give the file's
matrices plus `up' @ down'` of the same rank. All changes that only move rows act on `up` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Tensor
from lltool.quant.convert.families.changes import (
    Chain,
    Change,
    Each,
    Fold,
    Gather,
    Inverse,
    Permute,
    Same,
    Split,
    Squeeze,
    Stack,
    Transpose,
)
from lltool.quant.convert.families.sizes import Sizes
from lltool.quant.convert.packed.numbers import Floats

_MOVES_ROWS = (Same, Permute, Split, Gather, Fold)


@dataclass(frozen=True)
class LowRank:
    """scale * up @ down, where `up` is (rows, rank) and `down` (rank, columns), or stacks of such matrices."""

    up: Floats
    down: Floats
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return int(self.up.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.up.shape[:-1], self.down.shape[-1])


def change_factors(change: Change, factors: Sequence[LowRank], sizes: Sizes) -> list[LowRank]:
    """The factors of what `change` makes of matrices with these factors.

    Raises InputError for changes that do not keep the rank, and for stacks with different scales.
    """
    match change:
        case _ if len(factors) == 1 and _moves_rows(change):
            (only,) = factors
            return [_with_up(only, up) for up in _apply(change, [only.up], sizes)]
        case Chain():
            for part in change.changes:
                factors = change_factors(part, factors, sizes)
            return list(factors)
        case Each():
            pairs = zip(change.changes, factors, strict=True)
            return [made for part, factor in pairs for made in change_factors(part, [factor], sizes)]
        case Transpose() | Inverse(change=Transpose()):
            return [replace(f, up=f.down.swapaxes(-1, -2), down=f.up.swapaxes(-1, -2)) for f in factors]
        case Stack():
            return [_stack(factors)]
        case _ if _moves_rows(change) and all(factor.up.ndim == 2 for factor in factors):
            return _change_together(change, factors, sizes)
    raise InputError(f"a change of low rank cannot pass through {type(change).__name__}")


def _moves_rows(change: Change) -> bool:
    match change:
        case Chain() | Each():
            return all(map(_moves_rows, change.changes))
        case Inverse():
            return _moves_rows(change.change)
        case Squeeze():
            return change.axis == 0
    return isinstance(change, _MOVES_ROWS)


def _apply(change: Change, matrices: Sequence[Floats], sizes: Sizes) -> list[Floats]:
    tensors = [float_tensor("", matrix) for matrix in matrices]
    return [np.ascontiguousarray(t.data()).view(np.float32).reshape(t.shape) for t in change.to_gguf(tensors, sizes)]


def float_tensor(name: str, values: Floats) -> Tensor:
    data = np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(-1, 4 * values.shape[-1])
    return Tensor(name, GGMLType.F32, values.shape, lambda start, stop: data[start:stop])


def _with_up(factor: LowRank, up: Floats) -> LowRank:
    """The factor with other rows; where they became a stack, all of its matrices share `down`."""
    down = factor.down
    if up.ndim > down.ndim:
        down = np.broadcast_to(down, (*up.shape[:-2], *down.shape))
    return replace(factor, up=up, down=down)


def _stack(factors: Sequence[LowRank]) -> LowRank:
    """Matrices of lower rank than others get columns and rows of zeros, which change nothing."""
    rank, scale = max(factor.rank for factor in factors), factors[0].scale
    ups, downs = [], []
    for factor in factors:
        more = rank - factor.rank
        up = factor.up if factor.scale == scale else factor.up * np.float32(factor.scale / scale)
        ups.append(np.pad(up, ((0, 0), (0, more))))
        downs.append(np.pad(factor.down, ((0, more), (0, 0))))
    return LowRank(np.stack(ups), np.stack(downs), scale)


def _change_together(change: Change, factors: Sequence[LowRank], sizes: Sizes) -> list[LowRank]:
    """Several matrices become fewer or others: each result has the ranks of those whose rows it takes."""
    ends = np.cumsum([factor.rank for factor in factors])
    ups, marks = [], []
    for number, (factor, end) in enumerate(zip(factors, ends, strict=True)):
        up = np.zeros((factor.up.shape[0], int(ends[-1])), np.float32)
        up[:, end - factor.rank : end] = factor.up * np.float32(factor.scale)
        ups.append(up)
        marks.append(np.full((factor.up.shape[0], 1), number, np.float32))
    made = []
    for up, mark in zip(_apply(change, ups, sizes), _apply(change, marks, sizes), strict=True):
        taken = np.unique(mark).astype(int)
        columns = np.concatenate([np.arange(ends[i] - factors[i].rank, ends[i]) for i in taken])
        made.append(LowRank(up[..., columns], np.concatenate([factors[i].down for i in taken])))
    return made


def no_change(shape: Sequence[int]) -> LowRank:
    """Factors of rank 1 that change nothing, for a matrix that an adapter leaves as it is."""
    rows, columns = shape
    return LowRank(np.zeros((rows, 1), np.float32), np.zeros((1, columns), np.float32))
