"""Measures the points of a grid in turns: a slow minute of the machine hits each of them alike."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from lltool.eval.bench.energy import EnergyMeter
from lltool.eval.bench.environment import describe_build, describe_machine
from lltool.eval.bench.footprint import Footprint, measure_footprint
from lltool.eval.bench.history import find_drift
from lltool.eval.bench.plan import Point, Settings, Workload, find_unmet, resolve
from lltool.eval.bench.record import Measurement
from lltool.eval.bench.runner import Runner
from lltool.eval.bench.schedule import Effort, Sample, choose, describe_effort, schedule, warm_up
from lltool.eval.bench.watch import Watch, describe_conditions
from lltool.gguf.describe import Description, describe
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError

# Called with runs done, runs in all as far as is known, and the one that comes next.
Progress = Callable[[int, int, str], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while measuring; `measurements` has the repetitions that were finished."""

    def __init__(self, measurements: "list[Measurement]") -> None:
        super().__init__()
        self.measurements = measurements


def measure(
    points: Sequence[Point],
    effort: Effort | None = None,
    *,
    warm: bool = True,
    memory: bool = True,
    history: Path | None = None,
    executor: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measurement]:
    """A measurement a point, in their order. Points that come to the same are measured once.

    Everything is loaded before anything is timed; `memory` and load times are found afterwards, in processes of their
    own. `history` tells how far this machine's speed wanders between runs. Raises InputError for what cannot be had,
    and Interrupted.
    """
    asked = {point: (resolve(point.settings), point.workload) for point in points}
    with ExitStack() as stack:
        machine = describe_machine() | {"build": describe_build()}
        session = _Session(effort or Effort(), warm, memory, progress, machine, find_drift(history, machine))
        for ran in dict.fromkeys(ran for ran, _ in asked.values()):
            workloads = list(dict.fromkeys(workload for other, workload in asked.values() if other == ran))
            runner = Runner(ran, workloads, executor=executor, seed=seed)
            stack.callback(runner.close)
            session.add(ran, workloads, runner)
        try:
            session.run(seed)
        except KeyboardInterrupt:
            raise Interrupted(session.conclude(asked)) from None
        return session.conclude(asked)


@dataclass(eq=False)
class _Test:
    """What is measured once, for all points of the grid that come to the same."""

    ran: Settings
    workload: Workload
    runner: Runner
    watch: Watch
    started: str = ""
    meter: EnergyMeter = field(default_factory=EnergyMeter)
    energy: list[float | None] = field(default_factory=list)  # joules
    footprint: Footprint | None = None
    notes: list[str] = field(default_factory=list)

    def warm_up(self) -> None:
        """As llama-bench, the whole prompt and a token; again until that gets no faster."""
        workload = replace(self.workload, generation=min(self.workload.generation, 1))
        found = warm_up(lambda: self.runner.run(workload).nanoseconds)
        if not found.is_stable:
            self.notes.append(f"still getting faster after {found.runs} runs to warm up")

    def sample(self) -> Sample:
        self.started = self.started or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.watch.start()
        self.meter.start()
        run = self.runner.run(self.workload)
        self.energy.append(self.meter.stop())
        return Sample(run, self.watch.stop())

    def find_footprint(self) -> None:
        try:
            self.footprint = measure_footprint(self.ran, self.workload)
        except InputError as error:
            self.notes.append(str(error))  # what was timed is good without

    def __str__(self) -> str:
        return f"{self.ran.model.name}, {self.workload}"


@dataclass
class _Session:
    """All tests, their samples so far, and what is known of the models."""

    effort: Effort
    warm: bool
    memory: bool
    progress: Progress | None
    machine: dict[str, Any]
    drift: float
    samples: dict[_Test, list[Sample]] = field(default_factory=dict)
    facts: dict[Path, tuple[Description, str]] = field(default_factory=dict)

    def add(self, ran: Settings, workloads: Sequence[Workload], runner: Runner) -> None:
        for workload in workloads:
            self.samples[_Test(ran, workload, runner, Watch(ran.threads))] = []
        if ran.model not in self.facts:
            file = runner.model.file
            self.facts[ran.model] = describe(file), sha256_of(file.paths)

    def run(self, seed: int) -> None:
        tests = list(self.samples)
        if self.warm:
            for number, test in enumerate(tests):
                self._tell(number, f"{test}, to warm up")
                test.warm_up()
        for test, _ in schedule(tests, self.samples, self.effort, seed=seed):
            self._tell(self.warm * len(tests) + sum(map(len, self.samples.values())), str(test))
            self.samples[test].append(test.sample())
        for number, test in enumerate(tests if self.memory else ()):
            self._tell(self._total() - len(tests) + number, f"{test}, its memory")
            test.find_footprint()
        self._tell(self._total(), "")

    def _tell(self, done: int, note: str) -> None:
        if self.progress:
            self.progress(done, max(done, self._total()), note)

    def _total(self) -> int:
        """Runs, as far as is known: a test can turn out to need more of them."""
        others = self.warm + self.memory
        return sum(others + max(self.effort.repetitions, len(found)) for found in self.samples.values())

    def conclude(self, asked: dict[Point, tuple[Settings, Workload]]) -> list[Measurement]:
        """Measurements of the points that have a sample."""
        tests = {(test.ran, test.workload): test for test in self.samples}
        return [self._conclude(point, tests[same]) for point, same in asked.items() if self.samples[tests[same]]]

    def _conclude(self, point: Point, test: _Test) -> Measurement:
        samples = self.samples[test]
        kept = choose(samples, self.effort.repetitions)
        runs = [sample.run for sample in kept]
        unmet = find_unmet(point.settings)
        notes = [*([unmet] if unmet else []), *test.notes, *describe_effort(samples, self.effort)]
        notes += describe_conditions([sample.conditions for sample in kept], [run.nanoseconds for run in runs])
        description, digest = self.facts[test.ran.model]
        energy = [joules for joules in test.energy if joules is not None]
        measured = test.footprint
        return Measurement(
            point=point,
            ran=test.ran,
            model=description,
            model_sha256=digest,
            started=test.started,
            runs=tuple(runs),
            load_ms=measured.load_ms if measured else test.runner.load_ms,
            peak_rss_bytes=measured.peak if measured else None,
            energy_j=median(energy) if energy else None,
            notes=tuple(notes),
            machine=self.machine,
            drift=self.drift,
            disturbance=median(sample.conditions.disturbance for sample in kept),
        )
