"""Where the time goes: seconds of each kind of operation of a Program, with what it reads and multiplies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from lltool.engine.cpu import CpuExecutor
from lltool.engine.program import Embed, Gated, Linear, Norm, Op, Program
from lltool.eval.bench.limits import Limits, better_of, measure_limits
from lltool.eval.bench.plan import Point, Settings, Workload, resolve
from lltool.eval.bench.record import model_type
from lltool.eval.bench.runner import Runner
from lltool.eval.bench.work import Work, calls_of, limits_for, work_of
from lltool.gguf.describe import describe

Row = dict[str, Any]
BETWEEN = "between the operations"

COLUMNS = {
    "model_filename": "TEXT",
    "model_type": "TEXT",
    "n_threads": "INTEGER",
    "n_prompt": "INTEGER",
    "n_gen": "INTEGER",
    "n_depth": "INTEGER",
    "n_parallel": "INTEGER",
    "operation": "TEXT",
    "types": "TEXT",
    "count": "INTEGER",
    "us_per_token": "REAL",
    "share": "REAL",
    "read_bytes_per_token": "REAL",
    "multiply_adds_per_token": "REAL",
    "read_bytes_per_s": "REAL",
    "multiply_adds_per_s": "REAL",
    "limit_share": "REAL",  # of the limit that binds: the larger of the fractions of the two limits
    "limit_name": "TEXT",
}


@dataclass(frozen=True)
class Operation:
    """All operations of one kind: the same weights in every block."""

    name: str
    types: str
    count: int
    seconds: float
    work: Work

    def find_limit(self, limits: Limits) -> tuple[float, str]:
        """The fraction of the limit that binds, and its name; 0 for what neither reads weights nor multiplies."""
        if self.seconds <= 0 or not (self.work.read or self.work.multiply_adds):
            return 0.0, ""
        multiplies = max(("int8", "int16", "float32"), key=lambda kind: getattr(self.work, kind))
        times = ((self.work.read_seconds(limits), "read"), (self.work.multiply_seconds(limits), multiplies))
        least, name = max(times)
        return least / self.seconds, name


@dataclass(frozen=True)
class Profile:
    """The fastest run of one workload; `seconds` are those of all of it, operations come by falling time."""

    ran: Settings
    workload: Workload
    model: str
    limits: Limits
    seconds: float
    operations: tuple[Operation, ...]


def profile(points: Sequence[Point], repetitions: int = 5) -> list[Profile]:
    """The fastest run of each point, operation by operation."""
    return [_profile(resolve(point.settings), point.workload, repetitions) for point in dict.fromkeys(points)]


def _profile(ran: Settings, workload: Workload, repetitions: int) -> Profile:
    limits = measure_limits(ran.threads)
    runner = Runner(ran, [workload])
    try:
        executor, program = runner.model.executor, runner.model.program
        assert isinstance(executor, CpuExecutor)
        runner.run(workload)  # warms up, and fills what lies behind
        executor.take_times()
        runs = []
        for _ in range(repetitions):
            nanoseconds = runner.run(workload).nanoseconds
            runs.append((nanoseconds * 1e-9, executor.take_times()))
        total, times = min(runs, key=lambda run: run[0])  # the least disturbed, of which all parts add up
        groups: dict[tuple[str, str], list[tuple[tuple[Op, ...], float]]] = {}
        for ops, seconds in times:
            groups.setdefault(name_of(ops, program), []).append((ops, seconds))
        calls = list(calls_of(workload, ran))
        operations = [
            Operation(
                *name,
                len(steps),
                sum(seconds for _, seconds in steps),
                work_of((op for ops, _ in steps for op in ops), calls, program, ran),
            )
            for name, steps in groups.items()
        ]
        model = model_type(describe(runner.model.file))
        limits = limits_for(limits, program)
    finally:
        runner.close()
    limits = better_of(limits, measure_limits(ran.threads))  # a neighbour may have disturbed one of them
    rest = Operation(BETWEEN, "", 1, max(0.0, total - sum(op.seconds for op in operations)), Work())
    ordered = sorted(operations, key=lambda op: -op.seconds)
    return Profile(ran, workload, model, limits, total, (*ordered, rest))


def name_of(ops: Sequence[Op], program: Program) -> tuple[str, str]:
    """What runs together, without the number of the block, and the types of its matrices."""
    names = list(dict.fromkeys(_name(op) for op in ops))
    matrices = [name for op in ops for name in _matrices(op)]
    types = dict.fromkeys(program.weights[name].type.name for name in matrices)
    return ", ".join(names), " ".join(types)


def _name(op: Op) -> str:
    kind = type(op).__name__.lower()
    match op:
        case Linear():
            return " ".join([kind, *map(_short, op.weights)])
        case Norm() | Embed():
            return f"{kind} {_short(op.weight)}"
        case Gated():
            return op.activation
        case _:
            return kind


def _matrices(op: Op) -> tuple[str, ...]:
    return op.weights if isinstance(op, Linear) else (op.weight,) if isinstance(op, Embed) else ()


def _short(name: str) -> str:
    """`attn_q` of `blk.3.attn_q.weight`."""
    words = name.removesuffix(".weight").split(".")
    return ".".join(words[2:] if words[0] == "blk" else words)


def rows_of(profiles: Sequence[Profile]) -> Iterator[Row]:
    """A flat row an operation."""
    for found in profiles:
        workload, tokens = found.workload, found.workload.tokens
        for op in found.operations:
            fraction, limit = op.find_limit(found.limits)
            rates = [amount / op.seconds if op.seconds else 0.0 for amount in (op.work.read, op.work.multiply_adds)]
            values = (
                *(PurePath(found.ran.model).name, found.model, found.ran.threads),
                *(workload.prompt, workload.generation, workload.depth, workload.sequences),
                *(op.name, op.types, op.count, op.seconds / tokens * 1e6, op.seconds / found.seconds),
                *(op.work.read / tokens, op.work.multiply_adds / tokens, *rates, fraction, limit),
            )
            yield dict(zip(COLUMNS, values, strict=True))
