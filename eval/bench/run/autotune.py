"""Searches for the best numbers of threads for a model on this machine, in a few seconds."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic

from lltool.engine.cpu.threads import available_cpus, default_threads
from lltool.engine.cpu.tuning import Tuned
from lltool.eval.bench.run.plan import resolve
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.settings import Settings, Workload
from lltool.eval.common.tables import format_table

DECODE, BATCH = Workload(0, 8, 32), Workload(64, 0)
SECONDS = 6.0  # for the whole search, unless LEAST rounds take longer
LEAST = 3  # rounds
CLOSE = 0.03  # more threads have to be faster by more than this fraction
HOPELESS = 1.6  # a candidate that takes this many times as long as the best is not tried again

TimeRun = Callable[[int, Workload], int]  # takes threads and a workload, returns nanoseconds


@dataclass(frozen=True)
class Search:
    """Median nanoseconds of DECODE and BATCH by number of threads, and the best numbers."""

    decode: Mapping[int, float]
    batch: Mapping[int, float]

    @property
    def tuned(self) -> Tuned:
        return Tuned(choose_threads(self.decode), choose_threads(self.batch))


def candidates(cores: int, processors: int) -> list[int]:
    """Numbers of threads worth trying: all up to eight, multiples of an eighth of the cores, and all processors."""
    steps = {count for count in range(1, cores + 1) if count <= 8 or count % (cores // 8) == 0}
    return sorted({*steps, cores, processors})


def choose_threads(times: Mapping[int, float]) -> int:
    """The fewest threads that come within CLOSE of the fastest."""
    best = min(times.values())
    return min(count for count, time in times.items() if time <= best * (1 + CLOSE))


def autotune(model: Path, *, seconds: float = SECONDS) -> tuple[int, Search]:
    """Loads the model once for each candidate and runs them in turns; returns the file's size and the search."""
    counts = candidates(default_threads(), len(available_cpus()))
    with ExitStack() as stack:
        runners = {}
        for count in counts:
            runners[count] = Runner(resolve(Settings(model, threads=count)), [DECODE, BATCH])
            stack.callback(runners[count].close)
        size = runners[counts[0]].model.file.size
        return size, search(counts, lambda count, workload: runners[count].run(workload).nanoseconds, seconds)


def search(
    counts: Sequence[int], run: TimeRun, seconds: float = SECONDS, *, clock: Callable[[], float] = monotonic
) -> Search:
    """Runs rounds over the candidates, forwards and backwards in turn, until time is up; slow ones drop out."""
    end = clock() + seconds
    times: dict[Workload, dict[int, list[int]]] = {w: {count: [] for count in counts} for w in (DECODE, BATCH)}
    for workload in times:
        for count in counts:
            run(count, workload)  # warms up
    rounds = 0
    while rounds < LEAST or clock() < end:
        for workload, found in times.items():
            fastest = {count: min(values, default=0) for count, values in found.items()}
            alive = [count for count in counts if fastest[count] <= HOPELESS * min(fastest.values())]
            for count in alive if rounds % 2 == 0 else alive[::-1]:
                found[count].append(run(count, workload))
        rounds += 1
    decode, batch = ({count: float(median(values)) for count, values in times[w].items()} for w in (DECODE, BATCH))
    return Search(decode, batch)


def format_search(found: Search) -> str:
    """A table with a line for each number of threads; a star marks the chosen ones."""
    chosen, lines = found.tuned, []
    for count in sorted(found.decode):
        speeds = (
            (DECODE.tokens * 1e9 / found.decode[count], count == chosen.decode),
            (BATCH.tokens * 1e9 / found.batch[count], count == chosen.batch),
        )
        lines.append((str(count), *(f"{speed:.1f}{' *' if is_chosen else '  '}" for speed, is_chosen in speeds)))
    return format_table(("threads", "one token at a time, t/s", "many at once, t/s"), lines, left=0)
