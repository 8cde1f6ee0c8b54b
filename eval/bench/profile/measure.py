"""Profiles a Program: the seconds of each kind of operation, with the bytes that it reads and its multiply-adds."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.program import Operation as Op
from lltool.engine.program import Program
from lltool.eval.bench.machine.limits import Limits, better_of, measure_limits
from lltool.eval.bench.results.record import model_type
from lltool.eval.bench.results.rows import sql_columns
from lltool.eval.bench.run.plan import GridPoint, resolve
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.run.work import Work, calls_of, limits_for, work_of
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.describe import describe_file

BETWEEN = "between the operations"


@dataclass(frozen=True)
class ProfileRow:
    """One operation of a profile, in columns."""

    model_filename: str
    model_type: str
    n_threads: int
    n_prompt: int
    n_gen: int
    n_depth: int
    n_parallel: int
    operation: str
    types: str
    count: int
    us_per_token: float
    share: float
    read_bytes_per_token: float
    multiply_adds_per_token: float
    read_bytes_per_s: float
    multiply_adds_per_s: float
    limit_share: float  # the fraction of the binding limit, which is the larger of the two fractions
    limit_name: str


COLUMNS = dict(sql_columns(ProfileRow))


@dataclass(frozen=True)
class Operation:
    """All operations of one kind, such as those with the same weights in every block, and their sums."""

    name: str
    types: str
    count: int
    seconds: float
    work: Work

    def find_limit(self, limits: Limits) -> tuple[float, str]:
        """The fraction reached of the binding limit, and its name; 0 for operations without reads and products."""
        if self.seconds <= 0 or not (self.work.read or self.work.multiply_adds):
            return 0.0, ""
        multiplies = max(("int8", "int16", "float32"), key=lambda kind: getattr(self.work, kind))
        times = ((self.work.read_seconds(limits), "read"), (self.work.multiply_seconds(limits), multiplies))
        least, name = max(times)
        return least / self.seconds, name


@dataclass(frozen=True)
class Profile:
    """The fastest run of one workload; `seconds` is its total, and operations are sorted by falling time."""

    ran: Settings
    workload: Workload
    model: str
    limits: Limits
    seconds: float
    operations: tuple[Operation, ...]


def profile(points: Sequence[GridPoint], repetitions: int = 5) -> list[Profile]:
    """The fastest of `repetitions` runs of each point, operation by operation."""
    return [_profile(resolve(point.settings), point.workload, repetitions) for point in dict.fromkeys(points)]


def _profile(ran: Settings, workload: Workload, repetitions: int) -> Profile:
    limits = measure_limits(ran.threads)
    runner = Runner(ran, [workload])
    try:
        executor, program = runner.model.executor, runner.model.program
        assert isinstance(executor, CpuExecutor)
        runner.run(workload)  # warms up, and computes the past
        executor.take_times()
        runs = []
        for _ in range(repetitions):
            nanoseconds = runner.run(workload).nanoseconds
            runs.append((nanoseconds * 1e-9, executor.take_times()))
        total, times = min(runs, key=lambda run: run[0])  # the least disturbed run; the parts of one run add up
        groups: dict[tuple[str, str], list[tuple[tuple[Op, ...], float]]] = {}
        for ops, seconds in times:
            groups.setdefault(name_of(ops, program), []).append((ops, seconds))
        calls = list(calls_of(workload, ran))
        operations = [
            Operation(
                *name,
                len(timed),
                sum(seconds for _, seconds in timed),
                work_of((op for ops, _ in timed for op in ops), calls, program, ran),
            )
            for name, timed in groups.items()
        ]
        model = model_type(describe_file(runner.model.file))
        limits = limits_for(limits, program)
    finally:
        runner.close()
    limits = better_of(limits, measure_limits(ran.threads))  # other work may have disturbed one of the two
    rest = Operation(BETWEEN, "", 1, max(0.0, total - sum(op.seconds for op in operations)), Work())
    ordered = sorted(operations, key=lambda op: -op.seconds)
    return Profile(ran, workload, model, limits, total, (*ordered, rest))


def name_of(ops: Sequence[Op], program: Program) -> tuple[str, str]:
    """The names of the operations that run together, without block numbers, and the types of their matrices."""
    titles = [
        " ".join([op.title, *(_short(name) for name in op.weight_shapes if not name.endswith(".bias"))]) for op in ops
    ]
    matrices = [name for op in ops for name, shape in op.weight_shapes.items() if len(shape) > 1]
    types = dict.fromkeys(program.weights[name].type.name for name in matrices)
    return ", ".join(dict.fromkeys(titles)), " ".join(types)


def _short(name: str) -> str:
    """`attn_q` of `blk.3.attn_q.weight`."""
    words = name.removesuffix(".weight").split(".")
    return ".".join(words[2:] if words[0] == "blk" else words)


def rows_of(profiles: Sequence[Profile]) -> Iterator[ProfileRow]:
    """A row for each operation."""
    for found in profiles:
        workload, tokens = found.workload, found.workload.tokens
        for op in found.operations:
            amounts = (op.work.read, op.work.multiply_adds)
            values: tuple[Any, ...] = (
                *(found.ran.model.name, found.model, found.ran.threads, *astuple(workload), op.name, op.types),
                *(op.count, op.seconds / tokens * 1e6, op.seconds / found.seconds),
                *(amount / tokens for amount in amounts),
                *(amount / op.seconds if op.seconds else 0.0 for amount in amounts),
                *op.find_limit(found.limits),
            )
            yield ProfileRow(*values)
