"""Ours and other engines under one clock: A B A B, and B A B A the next time, judged by the ratios of neighbours.

On a shared machine absolute speeds wander by a third within minutes; the ratio of neighbouring runs does not.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import numpy as np

from lltool.eval.bench.peers.peer import Engine, Peer
from lltool.eval.bench.plan import Point, Run, Settings, Workload, resolve
from lltool.eval.bench.record import Interrupted, Measurement, Row, to_row
from lltool.eval.bench.rows import format_speed, speed_of
from lltool.eval.bench.runner import Runner
from lltool.eval.bench.schedule import Effort
from lltool.eval.bench.statistics import summarize
from lltool.eval.bench.tables import test_name
from lltool.eval.bench.watch import Conditions, Watch, describe_conditions
from lltool.eval.markdown import format_table
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
    conditions: list[Conditions] = field(default_factory=list)
    theirs: list[list[int]] = field(default_factory=list)  # a round, in the order of the engines


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
    if any(point.workload.sequences > 1 for point in points):
        raise InputError("--peer runs one sequence at a time; leave out -npl")
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
    facts: tuple[Any, str] | None = None

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
            self.facts = describe(file), sha256_of(file.paths)
            self.tests = [_Test(workload) for workload in runs]
            watch, end, done = Watch(self.ran.threads), monotonic() + self.effort.seconds, 0
            while done - warm < self.effort.repetitions or self._wants_more(done - warm, monotonic() < end):
                for number, test in enumerate(self.tests):
                    total = max(done + 1, self.effort.repetitions + warm) * len(runs)
                    tell(done * len(runs) + number, total, f"{self.ran.model.name}, {test.workload}")
                    tokens = random.integers(0, runner.model.config.vocab, test.workload.context).tolist()
                    self._round(test, runner, watch, tokens, is_back=done % 2 == 1, counts=done >= warm)
                done += 1
            tell(done * len(runs), done * len(runs), "")

    def _round(
        self, test: _Test, runner: Runner, watch: Watch, tokens: list[int], *, is_back: bool, counts: bool
    ) -> None:
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        theirs, ours, conditions = [0] * len(self.engines), Run(0, 0), Conditions()
        order = range(-1, len(self.engines))
        for index in reversed(order) if is_back else order:
            if self.effort.delay:
                sleep(self.effort.delay)
            if index < 0:
                watch.start()
                ours = runner.run(test.workload)
                conditions = watch.stop()
            else:
                theirs[index] = self.engines[index][1].time(test.workload, tokens)
        if counts:
            test.started = test.started or started
            test.ours.append(ours)
            test.conditions.append(conditions)
            test.theirs.append(theirs)

    def _wants_more(self, rounds: int, has_time: bool) -> bool:
        """Whether some ratio is not yet known as closely as `until` wants."""
        if self.effort.until is None or rounds >= self.effort.cap or not has_time:
            return False
        scatters = [summarize(_ratios(test, i)).scatter for test in self.tests for i in range(len(self.engines))]
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
                    drift=self.drift,
                    disturbance=median(conditions.disturbance for conditions in test.conditions),
                )
            )
            found["settings"] |= {"session": session}
            return found

        rows = [row(test.ours, notes)]
        for index, (_, engine) in enumerate(self.engines):
            times = [theirs[index] for theirs in test.theirs]
            found = row([Run(ns, 0) for ns in times], ()) | dict.fromkeys(_UNKNOWN) | dict(engine.columns)
            ratio = summarize(_ratios(test, index))
            found |= {"engine": engine.name, "samples_prompt_ns": None}
            found |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
            found["settings"] = {"session": session}
            rows.append(found)
        for number in {number for number, _ in self.engines}:
            modes = [row for row, (other, _) in zip(rows[1:], self.engines, strict=True) if other == number]
            best = max(modes, key=lambda row: float(row["median_ts"]))
            for mode in modes if len(modes) > 1 else ():
                mode["settings"]["is_best_mode"] = mode is best
        return rows


def _ratios(test: _Test, index: int) -> list[float]:
    """How many times as fast as the engine we were, a round."""
    return [theirs[index] / ours.nanoseconds for ours, theirs in zip(test.ours, test.theirs, strict=True)]


def format_ratios(rows: Sequence[Row]) -> str:
    """A Markdown table; a ratio above 1 means that lltool is faster. A star marks the best of a peer's modes."""
    titles = ("model", "test", "engine", "threads", "t/s (95 %)", "lltool / engine (95 %)", "pairs")
    lines, ours = [], rows[0]
    for row in rows:
        engine, ratio, pairs = row["engine"], "", ""
        if row["ratio"] is None:
            ours = row
        else:
            engine += " *" if row["settings"].get("is_best_mode") else ""
            known = row["ratio_low"] is not None
            ratio = f"{row['ratio']:.2f}" + (f" ({row['ratio_low']:.2f} – {row['ratio_high']:.2f})" if known else "")
            found = [b / a for a, b in zip(ours["samples_ns"], row["samples_ns"], strict=True)]
            pairs = f"{min(found):.2f} – {max(found):.2f}"
        what = (row["model_type"], test_name(row), engine, str(row["n_threads"]))
        lines.append((*what, format_speed(speed_of(row)), ratio, pairs))
    notes = ["*: the best of this engine's modes"] if any(" *" in line[2] for line in lines) else []
    notes += dict.fromkeys(f"{test_name(row)}: {note}" for row in rows for note in row["notes"])
    return "\n".join([format_table(titles, lines, left=3), *([""] if notes else []), *(f"- {note}" for note in notes)])
