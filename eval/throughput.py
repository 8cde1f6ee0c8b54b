"""Tokens a second, by llama-bench's method: random tokens, one warm-up, `repetitions` runs of each workload.

Workload pp N runs a prompt of N tokens and asks for the last one's logits; tg N feeds N tokens one at a time from an
empty cache. Repetitions go round all workloads of all models: a slow minute of the machine hits each of them alike.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import Precision
from lltool.engine.model import Model, load_model
from lltool.gguf.describe import Description, describe
from lltool.gguf.errors import InputError

# Called after each timed run with runs done and runs in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Workload:
    """Prompt or generated tokens; exactly one of the two is above 0."""

    prompt: int
    generation: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.generation

    def __str__(self) -> str:
        return f"pp{self.prompt}" if self.prompt else f"tg{self.generation}"


def workloads(prompts: Sequence[int], generations: Sequence[int]) -> list[Workload]:
    """One workload a length; 0 stands for none. Raises InputError when nothing is left."""
    found = [Workload(n, 0) for n in prompts if n] + [Workload(0, n) for n in generations if n]
    if not found:
        raise InputError("nothing to measure: wanted a prompt or generation length above 0")
    return found


@dataclass(frozen=True)
class Measurement:
    """Nanoseconds of each repetition of one workload on one model and number of threads; `started` is RFC 3339, UTC."""

    path: Path
    model: Description
    threads: int
    batch: int
    cache_type: str
    workload: Workload
    started: str
    nanoseconds: tuple[int, ...]

    @property
    def speeds(self) -> list[float]:
        """Tokens a second of each repetition."""
        return [self.workload.tokens * 1e9 / ns for ns in self.nanoseconds]

    @property
    def mean(self) -> float:
        return mean(self.speeds)

    @property
    def median(self) -> float:
        return median(self.speeds)

    @property
    def deviation(self) -> float:
        return stdev(self.speeds) if len(self.nanoseconds) > 1 else 0.0


@dataclass
class _Job:
    model: Model
    path: Path
    threads: int
    workload: Workload
    started: str = ""
    nanoseconds: list[int] = field(default_factory=list)


def measure(
    paths: Sequence[Path],
    *,
    prompts: Sequence[int] = (512,),
    generations: Sequence[int] = (128,),
    threads: Sequence[int],
    repetitions: int = 5,
    batch: int = 512,
    warm_up: bool = True,
    precision: Precision = "int8",
    executor: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measures every model with every number of threads in every workload; one of 0 tokens is left out."""
    runs = workloads(prompts, generations)
    context = max(w.tokens for w in runs)
    random = np.random.default_rng(seed)
    with ExitStack() as stack:
        jobs = []
        for path in paths:
            for count in threads:
                model = load_model(
                    path, executor=executor, threads=count, context=context, batch=batch, precision=precision
                )
                stack.enter_context(model)
                jobs += [_Job(model, path, count, workload) for workload in runs]
        for repetition in range(repetitions):
            for number, job in enumerate(jobs):
                tokens = random.integers(0, job.model.config.vocab, job.workload.tokens, dtype=np.int32)
                if repetition == 0:
                    if warm_up:
                        time_workload(job.model, Workload(job.workload.prompt, min(job.workload.generation, 1)), tokens)
                    job.started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                job.nanoseconds.append(time_workload(job.model, job.workload, tokens))
                if progress:
                    progress(repetition * len(jobs) + number + 1, repetitions * len(jobs))
        return [
            Measurement(
                path=job.path,
                model=describe(job.model.file),
                threads=job.threads,
                batch=batch,
                cache_type=job.model.cache_type,
                workload=job.workload,
                started=job.started,
                nanoseconds=tuple(job.nanoseconds),
            )
            for job in jobs
        ]


def time_workload(model: Model, workload: Workload, tokens: NDArray[np.int32]) -> int:
    """Nanoseconds of one run from an empty cache."""
    sequence = model.new_sequence()
    ids = tokens[: workload.tokens].tolist()
    start = perf_counter_ns()
    if workload.prompt:
        model.evaluate(sequence, ids)
    else:
        for token in ids:
            model.evaluate(sequence, [token])
    elapsed = perf_counter_ns() - start
    sequence.free()
    return elapsed
