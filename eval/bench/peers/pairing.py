"""Ours and other engines under one clock: A B A B, and B A B A the next time, judged by the ratios of neighbours.

On a shared machine absolute speeds wander by a third within minutes; the ratio of neighbouring runs does not. Of a peer
with several modes the one that a short trial shows to be fastest runs, for each test its own.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import median
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import numpy as np

from lltool.eval.bench.limits import Limits, better_of, measure_limits
from lltool.eval.bench.peers.peer import Engine, Peer, runs_in_one
from lltool.eval.bench.plan import Point, Run, Settings, Workload, resolve
from lltool.eval.bench.record import Interrupted, Measurement, Row, to_row
from lltool.eval.bench.runner import Runner
from lltool.eval.bench.schedule import Effort
from lltool.eval.bench.statistics import summarize
from lltool.eval.bench.watch import Conditions, Watch, describe_conditions
from lltool.eval.bench.work import Work, limits_for, work_of_all
from lltool.gguf.describe import describe
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError

Progress = Callable[[int, int, str], None]
# What only our own clock, which is inside, can tell.
_UNKNOWN = (
    "ttft_ms",
    "token_ms_p50",
    "token_ms_p95",
    "token_ms_p99",
    "load_ms",
    "first_token_ms",
    "peak_rss_bytes",
    "energy_j",
)


@dataclass
class _Test:
    """One workload in all engines: a run of each a round."""

    workload: Workload
    started: str = ""
    ours: list[Run] = field(default_factory=list)
    work: Work | None = None
    conditions: list[Conditions] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)  # nanoseconds of each engine
    engines: list[int] = field(default_factory=list)  # one of each peer: the fastest of its modes
    theirs: list[list[int]] = field(default_factory=list)  # a round, in the order of `engines`


def measure_beside(
    points: Sequence[Point],
    peers: Sequence[Peer],
    effort: Effort | None = None,
    *,
    warm: bool = True,
    machine: Mapping[str, Any] | None = None,
    drift: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of ours and behind each one the rows of the peers in the same test, which have a `ratio` to it.

    Raises InputError for what one of them cannot do, and Interrupted.
    """
    if any(point.settings.cpu_mask != "0x0" for point in points):
        raise InputError("--peer cannot be bound to processors with -C; run all of `lltool bench` under taskset")
    groups: dict[Settings, list[Point]] = {}
    for point in dict.fromkeys(points):
        groups.setdefault(resolve(point.settings), []).append(point)
    rows: list[Row] = []
    for number, (ran, group) in enumerate(groups.items()):

        def tell(done: int, total: int, note: str, number: int = number) -> None:
            if progress:
                progress(number * total + done, len(groups) * total, note)

        bench = _Bench(ran, group, effort or Effort(), machine or {}, drift, seed)
        try:
            bench.run(peers, warm, tell)
        except KeyboardInterrupt:
            raise Interrupted(rows + bench.rows()) from None
        rows += bench.rows()
    return rows


@dataclass
class _Bench:
    """All engines on one model with one setting."""

    ran: Settings
    points: Sequence[Point]
    effort: Effort
    machine: Mapping[str, Any]
    drift: float
    seed: int
    tests: list[_Test] = field(default_factory=list)
    engines: list[tuple[int, Engine]] = field(default_factory=list)  # each with the number of its peer
    vocabulary: int = 0
    facts: tuple[Any, str] | None = None
    limits: Limits | None = None

    def run(self, peers: Sequence[Peer], warm: bool, tell: Progress) -> None:
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
            self.facts, self.vocabulary = (describe(file), sha256_of(file.paths)), runner.model.config.vocab
            self.tests = [_Test(workload) for workload in runs]
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

    def _try_modes(self, test: _Test, random: np.random.Generator) -> None:
        """Each engine there and back on a short form of the test; that also warms them up."""
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

    def _round(self, test: _Test, runner: Runner, watch: Watch, tokens: list[int], *, is_back: bool) -> None:
        test.started = test.started or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        theirs, ours, conditions = [0] * len(test.engines), Run(0, 0), Conditions()
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
        """Whether some ratio is not yet known as closely as `until` wants."""
        if self.effort.until is None or rounds >= self.effort.cap or not has_time:
            return False
        scatters = [summarize(_ratios(test, i)).scatter for test in self.tests for i in range(len(test.engines))]
        return any(scatter is None or scatter > self.effort.until for scatter in scatters)

    def rows(self) -> list[Row]:
        """Of the tests that have a whole round."""
        session, rows = uuid4().hex, []
        for point, test in zip(self.points, self.tests, strict=True) if self.tests else ():
            if test.ours:
                rows += self._rows(point, test, session)
        return rows

    def _rows(self, point: Point, test: _Test, session: str) -> list[Row]:
        assert self.facts
        description, digest = self.facts
        notes = describe_conditions(test.conditions, [run.nanoseconds for run in test.ours])

        def row(runs: Sequence[Run], notes: Sequence[str]) -> Row:
            found = to_row(
                Measurement(
                    point=point,
                    ran=self.ran,
                    model=description,
                    model_sha256=digest,
                    started=test.started,
                    runs=tuple(runs),
                    notes=tuple(notes),
                    machine=self.machine,
                    work=test.work,
                    limits=self.limits,
                    drift=self.drift,
                    disturbance=median(conditions.disturbance for conditions in test.conditions),
                )
            )
            found["settings"] |= {"session": session}
            return found

        rows = [row(test.ours, notes)]
        for index, number in enumerate(test.engines):
            peer, engine = self.engines[number]
            found = row([Run(theirs[index], 0) for theirs in test.theirs], ())
            found |= dict.fromkeys(_UNKNOWN) | dict(engine.columns)
            ratio = summarize(_ratios(test, index))
            found |= {"engine": engine.name, "samples_prompt_ns": None}
            found |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
            modes = {e.name: ns for (p, e), ns in zip(self.engines, test.trials, strict=True) if p == peer}
            found["settings"] = {"session": session} | ({"modes_ns": modes} if len(modes) > 1 else {})
            rows.append(found)
        return rows


def _ratios(test: _Test, index: int) -> list[float]:
    """How many times as fast as the engine we were, a round."""
    return [theirs[index] / ours.nanoseconds for ours, theirs in zip(test.ours, test.theirs, strict=True)]
