"""Sampling: the sets that each step leaves, the distribution of draws, and seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lltool.engine.sampling import Sampler, largest
from lltool.gguf.errors import InputError


def logits_of(seed: int, size: int, *, ties: bool = False) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=size) * 3
    return (values.round() if ties else values).astype(np.float32)


def candidates_by_definition(logits: NDArray[np.float32], top_k: int, top_p: float, min_p: float) -> list[int]:
    """The chain step by step over a sorted list, as llama.cpp describes it."""
    ids = sorted(range(len(logits)), key=lambda id: (-logits[id], id))
    if top_k > 0:
        ids = ids[:top_k]
    weights = np.exp(logits[ids].astype(np.float64) - logits[ids[0]])
    kept, sum_before = [], 0.0
    for id, share in zip(ids, weights / weights.sum(), strict=True):
        if kept and top_p < 1 and sum_before >= top_p:
            break
        kept.append(id)
        sum_before += share
    return [id for id in kept if np.exp(np.float64(logits[id]) - logits[kept[0]]) >= min_p]


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 5000),
    ties=st.booleans(),
    top_k=st.sampled_from([0, 1, 2, 40, 6000]),
    top_p=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.9, 1.0]),
)
def test_steps_leave_the_tokens_that_their_definitions_leave(
    seed: int, size: int, ties: bool, top_k: int, top_p: float, min_p: float
) -> None:
    logits = logits_of(seed, size, ties=ties)
    found = Sampler(top_k=top_k, top_p=top_p, min_p=min_p).candidates(logits)
    assert found.tolist() == candidates_by_definition(logits, top_k, top_p, min_p)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 20000), count=st.integers(1, 100), ties=st.booleans())
def test_largest_is_the_head_of_a_stable_sort(seed: int, size: int, count: int, ties: bool) -> None:
    logits = logits_of(seed, size, ties=ties)
    assert largest(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = np.array([1.0, 0.0, 2.0, -1.0, 0.5], np.float32)
    sampler = Sampler(temperature, top_k=0, top_p=1, min_p=0, seed=1)
    draws = 20_000
    counts = np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=5)
    wanted = np.exp(logits.astype(np.float64) / temperature)
    wanted *= draws / wanted.sum()
    chi_square = ((counts - wanted) ** 2 / wanted).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: one seed in a thousand would exceed it


def test_draws_stay_among_the_candidates() -> None:
    logits = logits_of(0, 1000)
    sampler = Sampler(temperature=2, top_k=5, top_p=1, min_p=0, seed=0)
    drawn = {sampler.sample(logits) for _ in range(1000)}
    assert drawn == set(np.argsort(-logits)[:5].tolist())


def test_top_p_and_min_p_come_before_temperature() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    hot = Sampler(temperature=100, top_k=0, top_p=0.7, min_p=0, seed=0)
    assert {hot.sample(logits) for _ in range(200)} == {0, 1}
    assert Sampler(top_k=0, top_p=1, min_p=0.29).candidates(logits).tolist() == [0, 1, 2]


def test_greedy_takes_the_lowest_of_the_likeliest() -> None:
    logits = np.array([0, 3, -1, 3], np.float32)
    assert Sampler(temperature=0).sample(logits) == 1
    assert Sampler(top_k=1, seed=0).sample(logits) == 1


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    logits = logits_of(0, 5000)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(temperature=3, top_k=0, top_p=1, min_p=0, seed=seed)
        return [sampler.sample(logits) for _ in range(50)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.full(200, -np.inf, np.float32)
    logits[[3, 150]] = 0
    sampler = Sampler(top_k=0, top_p=1, min_p=0, seed=0)
    assert {sampler.sample(logits) for _ in range(100)} == {3, 150}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1, wanted a number from 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 1.5}, "top_p 1.5, wanted a number from 0 to 1"),
        ({"min_p": -0.5}, "min_p -0.5"),
        ({"seed": -2}, "seed -2"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampler(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"token 2 is .*weights are damaged"):
        Sampler().sample(np.array([0, 1, value, 3], np.float32))
