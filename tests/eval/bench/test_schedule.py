"""The order of measurements, when they end, and which of them count."""

from collections import Counter

import pytest

from lltool.eval.bench.machine.watch import Conditions
from lltool.eval.bench.run.plan import TimedRun
from lltool.eval.bench.run.schedule import Effort, Sample, WarmUp, choose_samples, describe_effort, schedule, warm_up


def sample(nanoseconds: int = 1000, waited: float = 0.0) -> Sample:
    return Sample(TimedRun(nanoseconds, 0), Conditions(waited=waited))


class Bench:
    """Measures letters; `take` holds the samples that runs of a letter give."""

    def __init__(self, points: str, effort: Effort) -> None:
        self.samples: dict[str, list[Sample]] = {point: [] for point in points}
        self.effort, self.now, self.waits = effort, 0.0, [0.0]

    def run(self, take: dict[str, list[Sample]] | None = None, seed: int = 0) -> str:
        order = ""
        points = schedule(
            list(self.samples), self.samples, self.effort, seed=seed, clock=lambda: self.now, wait=self.waits.append
        )
        for point, repetition in points:
            assert repetition == len(self.samples[point])
            order += point
            self.now += 1
            later = take[point] if take and point in take else [sample()]
            self.samples[point].append(later[min(repetition, len(later) - 1)])
        return order


def test_every_second_round_goes_back() -> None:
    order = Bench("abcd", Effort(repetitions=6)).run()
    rounds = [order[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(r) == list("abcd") for r in rounds)
    assert rounds[1::2] == [r[::-1] for r in rounds[::2]]
    assert len(set(rounds[::2])) > 1
    assert Bench("abcd", Effort(repetitions=6)).run() == order
    assert Bench("abcd", Effort(repetitions=6)).run(seed=1) != order


def test_a_steady_rise_affects_all_points_alike() -> None:
    bench = Bench("abcde", Effort(repetitions=4))
    order = bench.run()
    assert {sum(i for i, p in enumerate(order) if p == point) for point in "abcde"} == {38}


def test_disturbed_runs_are_replaced_up_to_twice_the_repetitions() -> None:
    bench = Bench("ab", Effort(repetitions=3))
    order = bench.run({"a": [sample(waited=0.5), sample(), sample(waited=0.2), sample()]})
    assert Counter(order) == {"a": 5, "b": 3}
    assert choose_samples(bench.samples["a"], 3) == [sample()] * 3
    assert describe_effort(bench.samples["a"], bench.effort) == [
        "2 of 5 runs were disturbed; the 3 least disturbed count"
    ]
    assert describe_effort(bench.samples["b"], bench.effort) == []
    busy = [sample(i, waited=w) for i, w in enumerate((0.5, 0.1, 0.6, 0.2, 0.7, 0.3), 1)]
    always = Bench("a", Effort(repetitions=3))
    assert always.run({"a": busy}) == "aaaaaa"
    assert [s.run.nanoseconds for s in choose_samples(always.samples["a"], 3)] == [2, 4, 6]  # in the order of time
    assert [s.run.nanoseconds for s in choose_samples(busy, 1)] == [2, 4, 6]
    assert [s.run.nanoseconds for s in choose_samples(busy, 4)] == [1, 2, 4, 6]


def test_until_repeats_only_points_with_a_wide_scatter() -> None:
    noisy = [sample(n) for n in (1000, 1100, 900) + (1000, 1001) * 10]
    bench = Bench("ab", Effort(repetitions=3, until=0.02))
    order = bench.run({"a": noisy})
    assert Counter(order)["b"] == 3
    assert 9 <= Counter(order)["a"] < 23
    assert describe_effort(bench.samples["a"], bench.effort) == []


@pytest.mark.parametrize(("effort", "runs"), [(Effort(3, 0.02, most=7), 7), (Effort(3, 0.02, seconds=11.5), 12)])
def test_until_has_limits_and_says_so(effort: Effort, runs: int) -> None:
    bench = Bench("a", effort)
    bench.run({"a": [sample(1000 + 500 * (i % 2)) for i in range(20)]})
    assert len(bench.samples["a"]) == runs
    (note,) = describe_effort(bench.samples["a"], effort)
    assert note.endswith(f"after {runs} runs, wanted ±2.0%: the limit was reached")


def test_until_ends_on_a_machine_that_is_always_busy() -> None:
    bench = Bench("a", Effort(repetitions=6, until=0.02))
    assert len(bench.run({"a": [sample(1000 + i % 3, waited=0.5) for i in range(100)]})) == 12


def test_repetitions_are_made_however_long_they_take() -> None:
    late = Bench("ab", Effort(repetitions=3, seconds=0))
    assert late.run({"a": [sample(waited=0.5)]}).count("a") == 3
    assert len(Bench("a", Effort(repetitions=1)).run()) == 1


def test_delay_is_between_runs() -> None:
    bench = Bench("ab", Effort(repetitions=2, delay=0.5))
    bench.run()
    assert bench.waits == [0.0] + [0.5] * 3


def test_warm_up_ends_when_runs_get_no_faster() -> None:
    def times(*nanoseconds: int) -> WarmUp:
        runs = iter(nanoseconds)
        return warm_up(lambda: next(runs), most=4, clock=lambda: 0.0)

    assert times(100, 99) == WarmUp(2, True)
    assert times(100, 120) == WarmUp(2, True)
    assert times(300, 150, 100, 97) == WarmUp(4, True)
    assert times(800, 400, 200, 100) == WarmUp(4, False)
    ticks = iter([0.0, 31.0])
    assert warm_up(lambda: 100, clock=lambda: next(ticks)) == WarmUp(1, False)
