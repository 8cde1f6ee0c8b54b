"""Measures the points of a grid in turns, so that a slow minute of the machine affects all of them alike."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from lltool.engine.model import load_model
from lltool.eval.bench.machine.energy import EnergyMeter
from lltool.eval.bench.machine.environment import describe_build, describe_machine
from lltool.eval.bench.machine.footprint import Footprint, measure_footprint
from lltool.eval.bench.machine.watch import Watch, describe_conditions
from lltool.eval.bench.results.history import find_drift
from lltool.eval.bench.results.record import Interrupted, make_row
from lltool.eval.bench.results.rows import ResultRow, Results
from lltool.eval.bench.run.plan import GridPoint, TimedRun, find_unmet, resolve
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.run.schedule import Effort, Sample, choose_samples, describe_effort, schedule, warm_up
from lltool.eval.bench.settings import Settings, Workload
from lltool.eval.common.steps import TitledProgress
from lltool.gguf.describe import Description, describe_file
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError

LOADED = 8  # settings that are loaded at once and take turns: each has a cache and buffers of its own


def measure_points(
    points: Sequence[GridPoint],
    effort: Effort | None = None,
    *,
    warm: bool = True,
    memory: bool = True,
    machine: Mapping[str, Any] | None = None,
    drift: float | None = None,
    executor: str = "cpu",
    seed: int = 0,
    progress: TitledProgress | None = None,
) -> Results:
    """A row for each point, in their order; points with the same settings in effect are measured once.

    LOADED settings are loaded at a time. With `memory`, memory and load times are measured afterwards, in separate
    processes. `machine` and `drift`, the relative standard deviation of speed between runs, are determined or guessed
    if not given. Raises InputError for points that cannot be measured, before anything is timed, and Interrupted.
    """
    asked = {point: (resolve(point.settings), point.workload) for point in points}
    check_models(points)
    machine = machine or describe_machine() | {"build": describe_build()}
    drift = find_drift(None, machine) if drift is None else drift
    run = _BenchRun(effort or Effort(), warm, memory, progress, machine, drift)
    tests = {same: _Test(*same, Watch(same[0].threads)) for same in asked.values()}
    run.samples = {test: [] for test in tests.values()}
    settings = list(dict.fromkeys(ran for ran, _ in tests))
    try:
        for start in range(0, len(settings), LOADED):
            block = settings[start : start + LOADED]
            run.run([test for test in tests.values() if test.ran in block], executor, seed)
    except KeyboardInterrupt:
        raise Interrupted(run.conclude(asked, tests)) from None
    return run.conclude(asked, tests)


def check_models(points: Sequence[GridPoint]) -> None:
    """Raises InputError for a model that does not load, or whose context is shorter than a test."""
    for path in dict.fromkeys(point.settings.model for point in points):
        longest = max((p.workload for p in points if p.settings.model == path), key=lambda workload: workload.context)
        with load_model(path, threads=1, context=1, batch=1) as model:
            limit = model.config.context_length
        if longest.context > limit:
            raise InputError(
                f"{path}: {longest} needs a context of {longest.context} tokens, but the model takes {limit} at most"
            )


@dataclass(eq=False)
class _Test:
    """A test that is measured once for all points of the grid with the same settings in effect and workload."""

    ran: Settings
    workload: Workload
    watch: Watch
    runner: Runner | None = None  # while its settings are loaded
    load_ms: float | None = None
    started: str = ""
    meter: EnergyMeter = field(default_factory=EnergyMeter)
    energy: list[float | None] = field(default_factory=list)  # joules
    footprint: Footprint | None = None
    notes: list[str] = field(default_factory=list)

    def warm_up(self) -> None:
        """Runs the whole prompt and one token, as llama-bench does, until repeating gets no faster."""
        workload = replace(self.workload, generation=min(self.workload.generation, 1))
        found = warm_up(lambda: self._run(workload).nanoseconds)
        if not found.is_stable and found.runs > 1:
            self.notes.append(f"still getting faster after {found.runs} warm-up runs")

    def sample(self) -> Sample:
        self.started = self.started or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.watch.start()
        self.meter.start()
        run = self._run(self.workload)
        self.energy.append(self.meter.stop())
        return Sample(run, self.watch.stop())

    def find_footprint(self) -> None:
        try:
            self.footprint = measure_footprint(self.ran, self.workload)
        except InputError as error:
            self.notes.append(str(error))  # the timings are valid without it

    def _run(self, workload: Workload) -> TimedRun:
        assert self.runner
        return self.runner.run(workload)

    def __str__(self) -> str:
        return f"{self.ran.model.name}, {self.workload}"


@dataclass
class _BenchRun:
    """All tests, their samples so far, and what is known of the models."""

    effort: Effort
    warm: bool
    memory: bool
    progress: TitledProgress | None
    machine: Mapping[str, Any]
    drift: float
    samples: dict[_Test, list[Sample]] = field(default_factory=dict)
    others: int = 0  # runs that are not samples
    facts: dict[Path, tuple[Description, str]] = field(default_factory=dict)

    def run(self, tests: Sequence[_Test], executor: str, seed: int) -> None:
        """Loads the models, takes the samples in turns, and closes the models."""
        with ExitStack() as stack:
            for ran in dict.fromkeys(test.ran for test in tests):
                self._tell(f"{ran.model.name}, loading")
                mine = [test for test in tests if test.ran == ran]
                runner = Runner(ran, [test.workload for test in mine], executor=executor, seed=seed)
                stack.callback(runner.close)
                for test in mine:
                    test.runner, test.load_ms = runner, runner.load_ms
                if ran.model not in self.facts:
                    file = runner.model.file
                    self.facts[ran.model] = describe_file(file), sha256_of(file.paths)
            for test in tests if self.warm else ():
                self._tell(f"{test}, warm-up")
                test.warm_up()
                self.others += 1
            for test, _ in schedule(tests, self.samples, self.effort, seed=seed):
                self._tell(str(test))
                self.samples[test].append(test.sample())
        for test in tests if self.memory else ():
            self._tell(f"{test}, memory")
            test.find_footprint()
            self.others += 1
        self._tell("")

    def _tell(self, note: str) -> None:
        """Reports progress; the total grows if a test turns out to need more runs."""
        if self.progress:
            done = sum(map(len, self.samples.values())) + self.others
            runs = sum(max(self.effort.repetitions, len(found)) for found in self.samples.values())
            self.progress(done, runs + len(self.samples) * (self.warm + self.memory), note)

    def conclude(
        self, asked: Mapping[GridPoint, tuple[Settings, Workload]], tests: Mapping[tuple[Settings, Workload], _Test]
    ) -> Results:
        """The rows of the points that have at least one sample."""
        done = ((point, tests[same]) for point, same in asked.items() if self.samples[tests[same]])
        return Results(self._conclude(point, test) for point, test in done)

    def _conclude(self, point: GridPoint, test: _Test) -> ResultRow:
        samples = self.samples[test]
        kept = choose_samples(samples, self.effort.repetitions)
        runs = [sample.run for sample in kept]
        unmet = find_unmet(point.settings)
        notes = [*([unmet] if unmet else []), *test.notes, *describe_effort(samples, self.effort)]
        notes += describe_conditions([sample.conditions for sample in kept], [run.nanoseconds for run in runs])
        description, digest = self.facts[test.ran.model]
        energy = [joules for joules in test.energy if joules is not None]
        measured = test.footprint
        return make_row(
            point,
            test.ran,
            description,
            runs,
            drift=self.drift,
            disturbance=median(sample.conditions.disturbance for sample in kept),
            model_sha256=digest,
            test_time=test.started,
            load_ms=measured.load_ms if measured else test.load_ms,
            first_token_ms=measured.first_token_ms if measured else None,
            peak_rss_bytes=measured.peak if measured else None,
            energy_j=median(energy) if energy else None,
            notes=notes,
            machine=dict(self.machine),
        )
