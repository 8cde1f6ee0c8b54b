"""Times our engine and peers in turns, A B and then B A, and compares them by the ratios of neighbouring runs.

On a shared machine absolute speeds vary by a third within minutes; the ratio of neighbouring runs does not. A peer with
several modes runs each test in the mode that is fastest in a short trial of that test.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import median
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import numpy as np

from lltool.eval.bench.machine.limits import Limits, better_of, measure_limits
from lltool.eval.bench.machine.watch import Conditions, Watch, describe_conditions
from lltool.eval.bench.peers.peer import Engine, Peer, runs_in_one
from lltool.eval.bench.results.record import Interrupted, make_row
from lltool.eval.bench.results.rows import ResultRow, Results, complete_row
from lltool.eval.bench.results.statistics import summarize_samples
from lltool.eval.bench.run.plan import GridPoint, TimedRun, resolve
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.run.schedule import Effort
from lltool.eval.bench.run.work import Work, limits_for, work_of_all
from lltool.eval.bench.settings import Settings, Workload
from lltool.eval.common.steps import TitledProgress
from lltool.gguf.describe import describe_file
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError

# The columns that only a clock inside the engine can fill.
_INSIDE = ("ttft_ms", "token_ms_p50", "token_ms_p95", "token_ms_p99")


@dataclass
class _PairedTest:
    """One workload in all engines; each round has a run of each engine."""

    workload: Workload
    started: str = ""
    ours: list[TimedRun] = field(default_factory=list)
    work: Work | None = None
    conditions: list[Conditions] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)  # nanoseconds of each engine in the trial
    engines: list[int] = field(default_factory=list)  # the number of each peer's fastest mode
    theirs: list[list[int]] = field(default_factory=list)  # nanoseconds: a list a round, in the order of `engines`


def measure_beside(
    points: Sequence[GridPoint],
    peers: Sequence[Peer],
    effort: Effort | None = None,
    *,
    warm: bool = True,
    machine: Mapping[str, Any] | None = None,
    drift: float = 0.0,
    seed: int = 0,
    progress: TitledProgress | None = None,
) -> Results:
    """Rows of our engine, each followed by the peers' rows of the same test, whose `ratio` refers to it.

    Raises InputError for a test that a peer cannot run, and Interrupted.
    """
    if any(point.settings.cpu_mask != "0x0" for point in points):
        raise InputError("--peer cannot be bound to processors with -C; run all of `lltool bench` under taskset")
    groups: dict[Settings, list[GridPoint]] = {}
    for point in dict.fromkeys(points):
        groups.setdefault(resolve(point.settings), []).append(point)
    rows = Results()
    for number, (ran, group) in enumerate(groups.items()):

        def tell(done: int, total: int, note: str, number: int = number) -> None:
            if progress:
                progress(number * total + done, len(groups) * total, note)

        bench = _Bench(ran, group, effort or Effort(), machine or {}, drift, seed)
        try:
            bench.run(peers, warm, tell)
        except KeyboardInterrupt:
            raise Interrupted(Results(rows + bench.rows())) from None
        rows += bench.rows()
    return rows


@dataclass
class _Bench:
    """All engines on one model with the same settings."""

    ran: Settings
    points: Sequence[GridPoint]
    effort: Effort
    machine: Mapping[str, Any]
    drift: float
    seed: int
    tests: list[_PairedTest] = field(default_factory=list)
    engines: list[tuple[int, Engine]] = field(default_factory=list)  # each with the number of its peer
    vocabulary: int = 0
    facts: tuple[Any, str] | None = None
    limits: Limits | None = None

    def run(self, peers: Sequence[Peer], warm: bool, tell: TitledProgress) -> None:
        runs = [point.workload for point in self.points]
        random = np.random.default_rng(self.seed)
        with ExitStack() as stack:
            runner = Runner(self.ran, runs, seed=self.seed)
            stack.callback(runner.close)
            for number, peer in enumerate(peers):
                for engine in peer.load(self.ran, runs):
                    stack.callback(engine.close)
                    self.engines.append((number, engine))
            file = runner.model.file
            self.facts, self.vocabulary = (describe_file(file), sha256_of(file.paths)), runner.model.config.vocab
            self.tests = [_PairedTest(workload) for workload in runs]
            for test in self.tests:
                test.work = work_of_all(runner.model.program, test.workload, self.ran)
            self.limits = measure_limits(self.ran.threads)
            for number, test in enumerate(self.tests):
                tell(
                    number, (1 + self.effort.repetitions) * len(runs), f"{self.ran.model.name}, {test.workload}: modes"
                )
                self._try_modes(test, random)
                if warm:
                    runner.run(test.workload)
            watch, end, done = Watch(self.ran.threads), monotonic() + self.effort.seconds, 0
            while done < self.effort.repetitions or self._wants_more(done, monotonic() < end):
                for number, test in enumerate(self.tests, len(runs)):
                    total = max(done + 2, self.effort.repetitions + 1) * len(runs)
                    tell(done * len(runs) + number, total, f"{self.ran.model.name}, {test.workload}")
                    self._round(test, runner, watch, self._draw(test.workload, random), is_back=done % 2 == 1)
                done += 1
            tell((done + 1) * len(runs), (done + 1) * len(runs), "")
            limits = better_of(self.limits, measure_limits(self.ran.threads))
            self.limits = limits_for(limits, runner.model.program)

    def _draw(self, workload: Workload, random: np.random.Generator) -> list[int]:
        tokens: list[int] = random.integers(0, self.vocabulary, workload.context).tolist()
        return tokens

    def _try_modes(self, test: _PairedTest, random: np.random.Generator) -> None:
        """Times each engine twice, in order and back, on a short form of the test; this also warms them up."""
        w = test.workload
        short = replace(w, prompt=min(w.prompt, 128), generation=min(w.generation, 16), depth=min(w.depth, 512))
        numbers = list(range(len(self.engines)))
        tokens = self._draw(short, random)
        found: list[list[int]] = [[] for _ in numbers]
        for number in numbers + numbers[::-1]:
            found[number].append(self.engines[number][1].time(short, tokens))
        test.trials = [min(times) for times in found]
        for peer in dict.fromkeys(peer for peer, _ in self.engines):
            modes = [number for number in numbers if self.engines[number][0] == peer]
            test.engines.append(min(modes, key=lambda number: test.trials[number]))

    def _round(self, test: _PairedTest, runner: Runner, watch: Watch, tokens: list[int], *, is_back: bool) -> None:
        test.started = test.started or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        theirs, ours, conditions = [0] * len(test.engines), TimedRun(0, 0), Conditions()
        order = range(-1, len(test.engines))
        for index in reversed(order) if is_back else order:
            if self.effort.delay:
                sleep(self.effort.delay)
            if index < 0:
                watch.start()
                runs = [runner.run(test.workload) for _ in range(runs_in_one(test.workload))]
                conditions = watch.stop()
                ours = sorted(runs, key=lambda run: run.nanoseconds)[len(runs) // 2]
            else:
                theirs[index] = self.engines[test.engines[index]][1].time(test.workload, tokens)
        test.ours.append(ours)
        test.conditions.append(conditions)
        test.theirs.append(theirs)

    def _wants_more(self, rounds: int, has_time: bool) -> bool:
        """Whether the scatter of some ratio is still wider than `until`."""
        if self.effort.until is None or rounds >= self.effort.cap or not has_time:
            return False
        scatters = [
            summarize_samples(_ratios(test, i)).scatter for test in self.tests for i in range(len(test.engines))
        ]
        return any(scatter is None or scatter > self.effort.until for scatter in scatters)

    def rows(self) -> list[ResultRow]:
        """The rows of the tests that have at least one whole round."""
        session, rows = uuid4().hex, []
        for point, test in zip(self.points, self.tests, strict=True) if self.tests else ():
            if test.ours:
                rows += self._rows(point, test, session)
        return rows

    def _rows(self, point: GridPoint, test: _PairedTest, session: str) -> list[ResultRow]:
        assert self.facts
        description, digest = self.facts
        notes = describe_conditions(test.conditions, [run.nanoseconds for run in test.ours])

        def row(runs: Sequence[TimedRun], notes: list[str]) -> ResultRow:
            found = make_row(
                point,
                self.ran,
                description,
                runs,
                work=test.work,
                limits=self.limits,
                drift=self.drift,
                disturbance=median(conditions.disturbance for conditions in test.conditions),
                model_sha256=digest,
                test_time=test.started,
                notes=notes,
                machine=dict(self.machine),
            )
            return replace(found, settings=found.settings | {"session": session})

        rows = [row(test.ours, notes)]
        for index, number in enumerate(test.engines):
            peer, engine = self.engines[number]
            found = row([TimedRun(theirs[index], 0) for theirs in test.theirs], [])
            modes = {e.name: ns for (p, e), ns in zip(self.engines, test.trials, strict=True) if p == peer}
            ratio = summarize_samples(_ratios(test, index))
            found = complete_row(found.columns() | dict.fromkeys(_INSIDE) | dict(engine.columns), engine.name)
            found = replace(
                found,
                engine=engine.name,
                samples_prompt_ns=None,
                ratio=ratio.median,
                ratio_low=ratio.low,
                ratio_high=ratio.high,
                settings={"session": session} | ({"modes_ns": modes} if len(modes) > 1 else {}),
            )
            rows.append(found)
        return rows


def _ratios(test: _PairedTest, index: int) -> list[float]:
    """Our speed divided by the engine's, round by round."""
    return [theirs[index] / ours.nanoseconds for ours, theirs in zip(test.ours, test.theirs, strict=True)]
