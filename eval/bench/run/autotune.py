"""Searches for the best numbers of threads for a model on this machine, and keeps only what its timings support."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic

from lltool.engine.cpu.threads import available_cpus, default_threads
from lltool.engine.cpu.tuning import Tuned
from lltool.eval.bench.machine.watch import Watch
from lltool.eval.bench.results.statistics import summarize_samples
from lltool.eval.bench.run.plan import resolve
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.settings import Settings, Workload
from lltool.eval.common.tables import format_table

DECODE, BATCH = Workload(0, 8, 32), Workload(64, 0)
SECONDS = 6.0  # for the whole search, unless LEAST rounds take longer
PATIENCE = 60.0  # seconds that the search waits for the machine to be quiet
LEAST = 6  # rounds: the fewest whose extremes enclose the median with 95 % confidence
CLOSE = 0.03  # more threads have to be faster by more than this fraction
HOPELESS = 1.6  # a candidate that takes this many times as long as the best is not tried again

Times = dict[int, int]  # nanoseconds by number of threads
TimeRun = Callable[[int, Workload], int | None]  # takes threads and a workload; None if others disturbed the run


@dataclass(frozen=True)
class Timings:
    """The undisturbed rounds of one workload: in each, every candidate that was still in the search ran once."""

    usual: int  # the number of threads without a search
    rounds: tuple[Times, ...]
    disturbed: int  # rounds that were dropped

    @property
    def is_judged(self) -> bool:
        return len(self.rounds) >= LEAST

    @property
    def medians(self) -> Mapping[int, float]:
        """Median nanoseconds by number of threads."""
        counts = sorted({count for times in self.rounds for count in times})
        return {count: float(median(times[count] for times in self.rounds if count in times)) for count in counts}

    def interval(self, count: int, other: int) -> tuple[float, float]:
        """The 95 % interval of the time with `count` threads over that with `other`, paired by round."""
        ratios = [times[count] / times[other] for times in self.rounds if count in times and other in times]
        found = summarize_samples(ratios)
        return (0.0, float("inf")) if found.low is None or found.high is None else (found.low, found.high)

    @property
    def best(self) -> int:
        """The usual number, unless the timings show another to be faster, or fewer to be as fast within CLOSE."""
        if not self.is_judged:
            return self.usual
        stayed = [count for count in self.medians if all(count in times for times in self.rounds)]
        faster = [count for count in stayed if self.interval(count, self.usual)[1] < 1]
        best = min(faster, key=lambda count: self.medians[count], default=self.usual)
        return next((c for c in stayed if c < best and self.interval(c, best)[1] <= 1 + CLOSE), best)


@dataclass(frozen=True)
class Search:
    """What was measured with one token at a time (DECODE) and with many (BATCH)."""

    decode: Timings
    batch: Timings

    @property
    def is_judged(self) -> bool:
        return self.decode.is_judged and self.batch.is_judged

    @property
    def tuned(self) -> Tuned:
        return Tuned(self.decode.best, self.batch.best)


def candidates(cores: int, processors: int) -> list[int]:
    """Numbers of threads worth trying: all up to eight, multiples of an eighth of the cores, and all processors."""
    steps = {count for count in range(1, cores + 1) if count <= 8 or count % (cores // 8) == 0}
    return sorted({*steps, cores, processors})


def autotune(model: Path, *, seconds: float = SECONDS, patience: float = PATIENCE) -> tuple[int, Search]:
    """Loads the model once for each candidate and runs them in turns; returns the file's size and the search."""
    usual = default_threads()
    counts = candidates(usual, len(available_cpus()))
    with ExitStack() as stack:
        runners, watches = {}, {}
        for count in counts:
            runners[count] = Runner(resolve(Settings(model, threads=count)), [DECODE, BATCH])
            stack.callback(runners[count].close)
            watches[count] = Watch(count)

        def run(count: int, workload: Workload) -> int | None:
            watches[count].start()
            taken = runners[count].run(workload).nanoseconds
            return None if watches[count].stop().is_disturbed else taken

        return runners[counts[0]].model.file.size, search(counts, usual, run, seconds, patience)


def search(
    counts: Sequence[int],
    usual: int,
    run: TimeRun,
    seconds: float = SECONDS,
    patience: float = PATIENCE,
    *,
    clock: Callable[[], float] = monotonic,
) -> Search:
    """Runs rounds over the candidates, forwards and backwards in turn, until time is up; slow ones drop out.

    A round in which other programs held our cores does not count. The search goes on for up to `patience` seconds until
    both workloads have LEAST rounds that count.
    """
    begun = clock()
    for workload in (DECODE, BATCH):
        for count in counts:
            run(count, workload)  # warms up
    rounds: dict[Workload, list[Times]] = {DECODE: [], BATCH: []}
    disturbed = {DECODE: 0, BATCH: 0}
    while (short := min(map(len, rounds.values())) < LEAST) or clock() < begun + seconds:
        if short and clock() >= begun + patience and any(disturbed.values()):
            break
        for workload, found in rounds.items():
            if len(found) >= LEAST and short:
                continue
            alive = list(_alive(counts, usual, found))
            times = {c: run(c, workload) for c in (alive if len(found) % 2 == 0 else alive[::-1])}
            whole = {count: taken for count, taken in times.items() if taken is not None}
            if len(whole) == len(times):
                found.append(whole)
            else:
                disturbed[workload] += 1
    return Search(*(Timings(usual, tuple(rounds[w]), disturbed[w]) for w in (DECODE, BATCH)))


def _alive(counts: Sequence[int], usual: int, rounds: Sequence[Times]) -> Iterator[int]:
    """The candidates that are not far behind the fastest, and the usual number, with which the others are compared."""
    fastest = {count: min((times[count] for times in rounds if count in times), default=0) for count in counts}
    for count in counts:
        if count == usual or fastest[count] <= HOPELESS * min(fastest.values()):
            yield count


def format_search(found: Search) -> str:
    """A table with a line for each number of threads; a star marks the chosen ones."""
    lines = []
    for count in sorted(found.decode.medians.keys() | found.batch.medians.keys()):
        cells = []
        for workload, timings in ((DECODE, found.decode), (BATCH, found.batch)):
            taken = timings.medians.get(count)
            speed = "" if taken is None else f"{workload.tokens * 1e9 / taken:.1f}"
            cells.append(f"{speed}{' *' if timings.is_judged and count == timings.best else '  '}")
        lines.append((str(count), *cells))
    return format_table(("threads", "one token at a time, t/s", "many at once, t/s"), lines, left=0)


def describe_search(found: Search) -> str:
    """One sentence on whether the timings decide."""
    said = []
    for name, timings in (("one token at a time", found.decode), ("many at once", found.batch)):
        if not timings.is_judged:
            held = (
                f"other programs held the processor in {timings.disturbed} of {timings.disturbed + len(timings.rounds)}"
            )
            said.append(f"{name}: cannot judge, {held} rounds")
    return "; ".join(said)
