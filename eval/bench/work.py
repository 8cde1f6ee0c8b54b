"""What a workload takes at least: bytes of weights and cache to be read, and multiply-adds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from itertools import pairwise

import numpy as np

from lltool.engine.program import Attention, Embed, Linear, Op, Program
from lltool.eval.bench.limits import Limits
from lltool.eval.bench.plan import Settings, Workload
from lltool.gguf.ggml_types import GGMLType, row_bytes
from lltool.gguf.mapped import in_large_pages

FLOATS = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})


@dataclass(frozen=True)
class Work:
    """Bytes read, and multiply-adds by the kind of the factors."""

    read: float = 0
    int8: float = 0
    int16: float = 0
    float32: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    @property
    def multiply_adds(self) -> float:
        return self.int8 + self.int16 + self.float32

    def read_seconds(self, limits: Limits) -> float:
        """The least time that reading takes."""
        return self.read / limits.bandwidth

    def multiply_seconds(self, limits: Limits) -> float:
        return self.int8 / limits.int8 + self.int16 / limits.int16 + self.float32 / limits.float32


@dataclass(frozen=True)
class Call:
    """One batch: pieces of sequences as (first position, tokens), and rows that want logits."""

    pieces: tuple[tuple[int, int], ...]
    outputs: int

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.pieces)


def limits_for(limits: Limits, program: Program) -> Limits:
    """The limits for weights where those of a program lie, which has been run."""
    largest = max((weight.data for weight in program.weights.values()), key=lambda data: data.nbytes)
    return replace(limits, large_pages=in_large_pages(largest))


def calls_of(workload: Workload, settings: Settings) -> Iterator[Call]:
    """The batches that the timed part of a workload makes (eval/bench/runner.py)."""
    if workload.prompt:
        yield from _feed(workload.depth, workload.prompt, workload.sequences, settings)
    for step in range(workload.generation):
        yield from _feed(workload.depth + workload.prompt + step, 1, workload.sequences, settings)


def _feed(position: int, count: int, sequences: int, settings: Settings) -> Iterator[Call]:
    total = sequences * count
    for first in range(0, total, settings.batch):
        last = min(first + settings.batch, total)
        for start in range(first, last, settings.ubatch):
            stop = min(start + settings.ubatch, last)
            cuts = [start, *range((start // count + 1) * count, stop, count), stop]
            pieces = tuple((position + a % count, b - a) for a, b in pairwise(cuts))
            ends = stop // count - start // count
            yield Call(pieces, ends + (stop == last and stop % count > 0))


def work_of(ops: Iterable[Op], calls: Sequence[Call], program: Program, settings: Settings) -> Work:
    """Of some of a program's operations in all the calls: weights are read once a call, keys and values that any of a
    piece's tokens sees once a piece."""
    head = {id(op) for op in program.ops[program.head :]}
    body_rows = [call.tokens for call in calls]
    head_rows = [call.outputs for call in calls if call.outputs]
    rows = ((op, head_rows if id(op) in head else body_rows) for op in ops)
    return reduce(Work.__add__, (_cost(op, counts, calls, program, settings) for op, counts in rows), Work())


def work_of_all(program: Program, workload: Workload, settings: Settings) -> Work:
    """Of a whole program in one run of the workload."""
    return work_of(program.ops, list(calls_of(workload, settings)), program, settings)


def _cost(op: Op, rows: Sequence[int], calls: Sequence[Call], program: Program, settings: Settings) -> Work:
    floats = "float32" if settings.precision == "f32" else "int16"  # what the kernels make of them for many tokens
    match op:
        case Linear():
            work = Work()
            for weight in (program.weights[name] for name in op.weights):
                kind = floats if settings.precision == "f32" or weight.type in FLOATS else "int8"
                products = float(weight.rows * weight.columns * sum(rows))
                work += Work(len(rows) * weight.data.nbytes, **{kind: products})
            return work
        case Embed():
            weight = program.weights[op.weight]
            return Work(sum(rows) * row_bytes(weight.type, weight.columns))
        case Attention():
            pairs, keys = _count_keys(calls, op.window)
            key, value = (row_bytes(GGMLType[name.upper()], op.head_dim) for name in (settings.type_k, settings.type_v))
            return Work(keys * op.kv_heads * (key + value), **{floats: 2.0 * pairs * op.heads * op.head_dim})
        case _:
            return Work()


def _count_keys(calls: Sequence[Call], window: int) -> tuple[int, int]:
    """Pairs of a token and a key that it sees; keys that each piece reads."""
    pieces = np.array([piece for call in calls for piece in call.pieces], np.int64).reshape(-1, 2)
    first, ends = pieces[:, 0], pieces.sum(axis=1)
    reach = window or int(ends.max(initial=0))
    # A token at position p sees min(p + 1, reach) keys; summed over p < n that is:
    seen = np.minimum(pieces.sum(axis=1), reach)
    before = np.minimum(first, reach)
    pairs = (seen * (seen + 1) - before * (before + 1)) // 2 + reach * ((ends - seen) - (first - before))
    keys = ends - np.maximum(first - reach + 1, 0)
    return int(pairs.sum()), int(keys.sum())
