"""The allocation of tensor types against an exhaustive search."""

from itertools import product

import numpy as np
import pytest

from lltool.quant import allocate as module
from lltool.quant.allocate import TypeOption, allocate


def try_all(tensors: list[list[TypeOption]], budget: int) -> float | None:
    costs = [
        sum(candidate.cost for candidate in mix)
        for mix in product(*tensors)
        if sum(candidate.bytes for candidate in mix) <= budget
    ]
    return min(costs, default=None)


@pytest.mark.parametrize("seed", range(20))
def test_allocate_finds_the_best_of_all_combinations(seed: int) -> None:
    random = np.random.default_rng(seed)
    step = int(random.choice([1, 7, 32]))
    tensors = [
        [TypeOption(int(random.integers(1, 60)) * step, float(random.random())) for _ in range(random.integers(1, 5))]
        for _ in range(5)
    ]
    for budget in random.integers(5, 250, 6) * step:
        choice = allocate(tensors, int(budget))
        expected = try_all(tensors, int(budget))
        if choice is None:
            assert expected is None
            continue
        picked = [candidates[index] for candidates, index in zip(tensors, choice, strict=True)]
        assert sum(candidate.bytes for candidate in picked) <= budget
        assert sum(candidate.cost for candidate in picked) == pytest.approx(expected)


def test_allocate_keeps_the_budget_with_sizes_too_fine_for_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_UNITS", 50)
    random = np.random.default_rng(1)
    tensors = [[TypeOption(int(b), 1 / b) for b in random.integers(1000, 9000, 4)] for _ in range(6)]
    exact = try_all(tensors, 30000)
    choice = allocate(tensors, 30000)
    assert choice is not None
    assert exact is not None
    picked = [candidates[index] for candidates, index in zip(tensors, choice, strict=True)]
    assert sum(candidate.bytes for candidate in picked) <= 30000
    assert sum(candidate.cost for candidate in picked) <= 1.2 * exact  # each size is rounded up by at most one unit


def test_allocate_without_room_or_choice() -> None:
    small, large = TypeOption(10, 1.0), TypeOption(20, 0.5)
    assert allocate([[small, large]], 9) is None
    assert allocate([[small, large]], 10) == [0]
    assert allocate([[small, large]], 10**12) == [1]
    assert allocate([[small]], 10) == [0]
    assert allocate([], 0) == []
