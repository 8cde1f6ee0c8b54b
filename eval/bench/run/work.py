"""Computes the least work of a workload: bytes of weights and cache to read, and multiply-adds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lltool.engine.program import Calls, Cost, Operation, Program, Rows
from lltool.eval.bench.machine.limits import Limits
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.mapped import in_large_pages


@dataclass(frozen=True)
class Work:
    """Bytes read, and multiply-adds by the type of the factors."""

    read: float = 0
    int8: float = 0
    int16: float = 0
    float32: float = 0

    @property
    def multiply_adds(self) -> float:
        return self.int8 + self.int16 + self.float32

    def read_seconds(self, limits: Limits) -> float:
        """The least time in which the machine reads the bytes."""
        return self.read / limits.bandwidth

    def multiply_seconds(self, limits: Limits) -> float:
        return self.int8 / limits.int8 + self.int16 / limits.int16 + self.float32 / limits.float32


@dataclass(frozen=True)
class Call:
    """One batch: pieces of sequences as (first position, tokens), and the number of rows with logits."""

    pieces: tuple[tuple[int, int], ...]
    outputs: int

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.pieces)


def limits_for(limits: Limits, program: Program) -> Limits:
    """The limits for the kind of page in which a program's weights lie; the program must have run."""
    largest = max((weight.data for weight in program.weights.values()), key=lambda data: data.nbytes)
    return replace(limits, large_pages=in_large_pages(largest))


def calls_of(workload: Workload, settings: Settings) -> Iterator[Call]:
    """The batches that the timed part of a workload makes (eval/bench/run/runner.py)."""
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


def work_of(ops: Iterable[Operation], calls: Sequence[Call], program: Program, settings: Settings) -> Work:
    """The work of some of a program's operations in all calls.

    Weights are read once for each call, and keys and values once for each piece with a token that sees them.
    """
    counted = Calls(
        rows={
            Rows.TOKEN: [call.tokens for call in calls],
            Rows.SELECTED: [call.outputs for call in calls if call.outputs],
        },
        pieces=[piece for call in calls for piece in call.pieces],
        key_type=GGMLType[settings.type_k.upper()],
        value_type=GGMLType[settings.type_v.upper()],
    )
    cost = sum((op.cost(counted, program.weights) for op in ops), Cost())
    if settings.precision == "f32":
        return Work(cost.read, float32=cost.quantized + cost.floats)
    return Work(cost.read, int8=cost.quantized, int16=cost.floats)  # the kernels convert floats to int16


def work_of_all(program: Program, workload: Workload, settings: Settings) -> Work:
    """The work of a whole program in one run of the workload."""
    return work_of(program.ops, list(calls_of(workload, settings)), program, settings)
