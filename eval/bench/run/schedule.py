"""Decides in which order, and how often, the points of a grid are measured.

Every other round visits all points in an order drawn anew, and the round after it goes back the same way: a passing
disturbance affects all points alike, and a steady rise or fall cancels between the two rounds.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from time import monotonic, sleep
from typing import TypeVar

from lltool.eval.bench.machine.watch import Conditions
from lltool.eval.bench.results.statistics import summarize_samples
from lltool.eval.bench.run.plan import TimedRun

P = TypeVar("P", bound=Hashable)


@dataclass(frozen=True)
class Sample:
    """One run and its conditions."""

    run: TimedRun
    conditions: Conditions


@dataclass(frozen=True)
class Effort:
    """How often a point is measured: `repetitions` times, and at most as many times again to replace disturbed runs.

    With `until`, a point is repeated until its scatter is that narrow (0.02 for 2 %) or a cap is reached: `most` runs
    of the point, or `seconds` in total.
    """

    repetitions: int = 5
    until: float | None = None
    most: int = 100
    seconds: float = 600.0
    delay: float = 0.0  # seconds between runs

    @property
    def cap(self) -> int:
        """The most runs of a point with `until`."""
        return max(self.repetitions, self.most)


def schedule(
    points: Sequence[P],
    samples: Mapping[P, Sequence[Sample]],
    effort: Effort,
    *,
    seed: int = 0,
    clock: Callable[[], float] = monotonic,
    wait: Callable[[float], None] = sleep,
) -> Iterator[tuple[P, int]]:
    """Yields points to measure, each with its number of runs so far; the caller adds its sample to `samples`."""
    random, end = Random(seed), clock() + effort.seconds
    order, is_back, is_first = list(points), True, True
    while True:
        if is_back := not is_back:
            order = order[::-1]
        else:
            random.shuffle(order)
        wanted = [point for point in order if _wants_more(samples[point], effort, has_time=clock() < end)]
        if not wanted:
            return
        for point in wanted:
            if effort.delay and not is_first:
                wait(effort.delay)
            is_first = False
            yield point, len(samples[point])


def choose_samples(samples: Sequence[Sample], repetitions: int) -> list[Sample]:
    """The undisturbed samples or, if there are fewer than `repetitions`, the less disturbed half of all samples."""
    clean = [sample for sample in samples if not sample.conditions.is_disturbed]
    if len(clean) >= repetitions:
        return clean
    half = max(repetitions, len(samples) // 2)
    least = sorted(range(len(samples)), key=lambda index: samples[index].conditions.disturbance)[:half]
    return [samples[index] for index in sorted(least)]


def describe_effort(samples: Sequence[Sample], effort: Effort) -> list[str]:
    """Notes on disturbed runs that were replaced, and on a scatter that stayed wider than `until`."""
    found, kept = [], choose_samples(samples, effort.repetitions)
    if len(kept) < len(samples):
        disturbed = sum(sample.conditions.is_disturbed for sample in samples)
        found.append(f"{disturbed} of {len(samples)} runs were disturbed; the {len(kept)} least disturbed count")
    if effort.until and (scatter := _scatter(kept)) > effort.until:
        found.append(f"±{scatter:.1%} after {len(samples)} runs, wanted ±{effort.until:.1%}: the limit was reached")
    return found


def _wants_more(samples: Sequence[Sample], effort: Effort, *, has_time: bool) -> bool:
    if len(samples) < effort.repetitions:
        return True
    kept = choose_samples(samples, effort.repetitions)
    if any(sample.conditions.is_disturbed for sample in kept) and len(samples) < 2 * effort.repetitions:
        return has_time
    return effort.until is not None and _scatter(kept) > effort.until and len(samples) < effort.cap and has_time


def _scatter(samples: Sequence[Sample]) -> float:
    scatter = summarize_samples([1e9 / sample.run.nanoseconds for sample in samples]).scatter
    return float("inf") if scatter is None else scatter


@dataclass(frozen=True)
class WarmUp:
    runs: int
    is_stable: bool


def warm_up(
    run: Callable[[], int],
    *,
    tolerance: float = 0.05,
    most: int = 10,
    seconds: float = 30.0,
    clock: Callable[[], float] = monotonic,
) -> WarmUp:
    """Repeats `run`, which returns nanoseconds, until it gains at most `tolerance` on the fastest run before.

    It ends without being stable after `most` runs or `seconds`.
    """
    end, fastest = clock() + seconds, run()
    for count in range(2, most + 1):
        if clock() >= end:
            return WarmUp(count - 1, False)
        latest = run()
        if latest > (1 - tolerance) * fastest:
            return WarmUp(count, True)
        fastest = latest
    return WarmUp(most, False)
