"""Measures the points of a grid in turns: a slow minute of the machine hits each of them alike."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from lltool.engine.model import load_model
from lltool.eval.bench.energy import EnergyMeter
from lltool.eval.bench.environment import describe_build, describe_machine
from lltool.eval.bench.footprint import Footprint, measure_footprint
from lltool.eval.bench.history import find_drift
from lltool.eval.bench.plan import Point, Run, Settings, Workload, find_unmet, resolve
from lltool.eval.bench.record import Interrupted, Measurement, to_row
from lltool.eval.bench.runner import Runner
from lltool.eval.bench.schedule import Effort, Sample, choose, describe_effort, schedule, warm_up
from lltool.eval.bench.watch import Watch, describe_conditions
from lltool.gguf.describe import Description, describe
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError

LOADED = 8  # settings that are loaded, and take turns, at once: each has a cache and buffers of its own

# Called with runs done, runs in all as far as is known, and the one that comes next.
Progress = Callable[[int, int, str], None]


def measure(
    points: Sequence[Point],
    effort: Effort | None = None,
    *,
    warm: bool = True,
    memory: bool = True,
    machine: Mapping[str, Any] | None = None,
    drift: float | None = None,
    executor: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measurement]:
    """A measurement a point, in their order. Points that come to the same are measured once.

    Takes LOADED settings at a time. `memory` and load times are found afterwards, in processes of their own. `machine`
    and `drift`, how far its speed wanders between runs, are found out or guessed where they are not given. Raises
    InputError for what cannot be had, before anything is timed, and Interrupted.
    """
    asked = {point: (resolve(point.settings), point.workload) for point in points}
    check_models(points)
    machine = machine or describe_machine() | {"build": describe_build()}
    drift = find_drift(None, machine) if drift is None else drift
    session = _Session(effort or Effort(), warm, memory, progress, machine, drift)
    tests = {same: _Test(*same, Watch(same[0].threads)) for same in asked.values()}
    session.samples = {test: [] for test in tests.values()}
    settings = list(dict.fromkeys(ran for ran, _ in tests))
    try:
        for start in range(0, len(settings), LOADED):
            block = settings[start : start + LOADED]
            session.run([test for test in tests.values() if test.ran in block], executor, seed)
    except KeyboardInterrupt:
        raise Interrupted([to_row(found) for found in session.conclude(asked, tests)]) from None
    return session.conclude(asked, tests)


def check_models(points: Sequence[Point]) -> None:
    """Raises InputError for a model that does not load, or was not made for as many tokens as a test has."""
    for path in dict.fromkeys(point.settings.model for point in points):
        longest = max((p.workload for p in points if p.settings.model == path), key=lambda workload: workload.context)
        with load_model(path, threads=1, context=1, batch=1) as model:
            limit = model.config.context_length
        if longest.context > limit:
            raise InputError(
                f"{path}: {longest} takes a context of {longest.context} tokens, the model was made for {limit} at most"
            )


@dataclass(eq=False)
class _Test:
    """What is measured once, for all points of the grid that come to the same."""

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
        """As llama-bench, the whole prompt and a token; again until that gets no faster."""
        workload = replace(self.workload, generation=min(self.workload.generation, 1))
        found = warm_up(lambda: self._run(workload).nanoseconds)
        if not found.is_stable and found.runs > 1:
            self.notes.append(f"still getting faster after {found.runs} runs to warm up")

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
            self.notes.append(str(error))  # what was timed is good without

    def _run(self, workload: Workload) -> Run:
        assert self.runner
        return self.runner.run(workload)

    def __str__(self) -> str:
        return f"{self.ran.model.name}, {self.workload}"


@dataclass
class _Session:
    """All tests, their samples so far, and what is known of the models."""

    effort: Effort
    warm: bool
    memory: bool
    progress: Progress | None
    machine: Mapping[str, Any]
    drift: float
    samples: dict[_Test, list[Sample]] = field(default_factory=dict)
    others: int = 0  # runs that are no samples
    facts: dict[Path, tuple[Description, str]] = field(default_factory=dict)

    def run(self, tests: Sequence[_Test], executor: str, seed: int) -> None:
        """Loads the models, takes the samples in turns, and lets go of the models."""
        with ExitStack() as stack:
            for ran in dict.fromkeys(test.ran for test in tests):
                self._tell(f"{ran.model.name}, to load")
                mine = [test for test in tests if test.ran == ran]
                runner = Runner(ran, [test.workload for test in mine], executor=executor, seed=seed)
                stack.callback(runner.close)
                for test in mine:
                    test.runner, test.load_ms = runner, runner.load_ms
                if ran.model not in self.facts:
                    file = runner.model.file
                    self.facts[ran.model] = describe(file), sha256_of(file.paths)
            for test in tests if self.warm else ():
                self._tell(f"{test}, to warm up")
                test.warm_up()
                self.others += 1
            for test, _ in schedule(tests, self.samples, self.effort, seed=seed):
                self._tell(str(test))
                self.samples[test].append(test.sample())
        for test in tests if self.memory else ():
            self._tell(f"{test}, its memory")
            test.find_footprint()
            self.others += 1
        self._tell("")

    def _tell(self, note: str) -> None:
        """Runs in all, as far as is known: a test can turn out to need more of them."""
        if self.progress:
            done = sum(map(len, self.samples.values())) + self.others
            runs = sum(max(self.effort.repetitions, len(found)) for found in self.samples.values())
            self.progress(done, runs + len(self.samples) * (self.warm + self.memory), note)

    def conclude(
        self, asked: Mapping[Point, tuple[Settings, Workload]], tests: Mapping[tuple[Settings, Workload], _Test]
    ) -> list[Measurement]:
        """Measurements of the points that have a sample."""
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
            load_ms=measured.load_ms if measured else test.load_ms,
            first_token_ms=measured.first_token_ms if measured else None,
            peak_rss_bytes=measured.peak if measured else None,
            energy_j=median(energy) if energy else None,
            notes=tuple(notes),
            machine=self.machine,
            drift=self.drift,
            disturbance=median(sample.conditions.disturbance for sample in kept),
        )
