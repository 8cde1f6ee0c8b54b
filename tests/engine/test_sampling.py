"""Sampling: native choices and those of numpy, the distribution of draws, texts, masks, seeds and memory."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lltool.engine.cpu import _native
from lltool.engine.cpu.threads import Team
from lltool.engine.sampling import Sampler, sample_rows
from lltool.engine.sampling_settings import STEPS
from lltool.gguf.errors import InputError
from lltool.quant import isa
from tests.engine.numpy_sampling import Reference

OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
# A value of each setting that does something, for rows that other settings leave whole.
ON: dict[str, dict[str, Any]] = {
    "penalties": {"repeat_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.5},
    "rewards": {"repeat_penalty": 0.7, "frequency_penalty": -0.3},
    "dry": {"dry_multiplier": 0.8, "dry_sequence_breakers": ()},
    "top_n_sigma": {"top_n_sigma": 1.2},
    "top_k": {"top_k": 5},
    "typical": {"typical_p": 0.6},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.12},
    "dynatemp": {"dynatemp_range": 0.7, "dynatemp_exponent": 1.5},
    "adaptive": {"adaptive_target": 0.4, "adaptive_decay": 0.8, "samplers": ("temperature", "adaptive_p")},
    "mirostat 1": {"mirostat": 1, "mirostat_tau": 2.0},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 2.0},
    "bias": {"logit_bias": {3: 1.5, 4: -math.inf, 0: -2.0}},
}


def logits_of(seed: int, size: int, *, ties: bool = False) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=size) * 3
    return (values.round() if ties else values).astype(np.float32)


@st.composite
def sampling_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of which some are on, with the steps in any order."""
    pick = st.sampled_from
    found: dict[str, Any] = {
        "temperature": draw(pick([0.0, 0.1, 0.8, 1.0, 30.0])),
        "top_k": draw(pick([0, 1, 2, 40, 100, 6000])),
        "top_p": draw(pick([0.0, 0.3, 0.95, 1.0])),
        "min_p": draw(pick([0.0, 0.05, 0.9, 1.0])),
        "typical_p": draw(pick([1.0, 1.0, 0.0, 0.5, 0.95])),
        "top_n_sigma": draw(pick([-1.0, -1.0, 0.5, 2.0])),
        "xtc_probability": draw(pick([0.0, 0.0, 0.5, 1.0])),
        "xtc_threshold": draw(pick([0.01, 0.1, 0.3, 0.6])),
        "repeat_last_n": draw(pick([64, 0, -1, 3])),
        "repeat_penalty": draw(pick([1.0, 1.3, 0.8])),
        "presence_penalty": draw(pick([0.0, 0.5])),
        "frequency_penalty": draw(pick([0.0, 0.2])),
        "dry_multiplier": draw(pick([0.0, 0.8])),
        "dry_base": draw(pick([1.75, 1.0, 1e4])),
        "dry_allowed_length": draw(pick([1, 2, 4])),
        "dry_penalty_last_n": draw(pick([64, -1, 7])),
        "dry_sequence_breakers": (),
        "dynatemp_range": draw(pick([0.0, 0.0, 0.5, 2.0])),
        "dynatemp_exponent": draw(pick([1.0, 0.5])),
        "mirostat": draw(pick([0, 0, 0, 1, 2])),
        "mirostat_tau": draw(pick([5.0, 1.0])),
        "adaptive_target": draw(pick([-1.0, 0.3, 0.8])),
        "logit_bias": draw(pick([{}, {0: 3.0, 1: -math.inf}])),
    }
    if draw(st.booleans()):
        found["samplers"] = tuple(draw(st.lists(pick(list(STEPS)), max_size=12)))
    return found


@settings(deadline=None, max_examples=250)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(2, 3000),
    ties=st.booleans(),
    changes=sampling_settings(),
    text=st.lists(st.integers(0, 5), max_size=100),
    instruction_set=st.sampled_from(_native.available_isas()),
)
def test_native_choices_are_those_of_numpy(
    seed: int, size: int, ties: bool, changes: dict[str, Any], text: list[int], instruction_set: str
) -> None:
    sampler = Sampler(**changes, seed=seed)
    reference = Reference(sampler)
    random = np.random.default_rng(seed)
    ids = [id for id in text if id < size]
    for turn in range(4):
        row = logits_of(seed + turn, size, ties=ties)
        draw, chance = (0.0, random.random()) if turn == 0 else (random.random(), random.random())
        (found,) = _native.sample(
            isa=instruction_set,
            logits=row[None],
            chains=[sampler.chain],
            draws=[draw, chance],
            texts=[np.array(ids, np.int32)],
            masks=[],
            team=None,
            poll=0,
        )
        assert found == reference.choose(row, ids, draw, chance)
        ids.append(found)


def test_every_step_changes_the_choices_and_is_off_by_default() -> None:
    row, text = logits_of(0, 40), np.array([1, 2, 3, 9, 1, 2, 3, 9, 1, 2], np.int32)
    draws = np.linspace(0, 1, 50)

    def choices(**changes: Any) -> list[int]:
        sampler = Sampler(**{**OFF, "temperature": 1.0, "seed": 0, **changes})
        return [_choose(sampler, row, text, draw, 0.2) for draw in draws]

    plain = choices()
    for name, changes in ON.items():
        assert choices(**changes) != plain, name
        if "samplers" not in changes and not changes.keys() & {"mirostat", "logit_bias", "dynatemp_range"}:
            assert choices(**changes, samplers=("temperature",)) == plain, name


def _choose(sampler: Sampler, row: NDArray[np.float32], text: NDArray[np.int32], draw: float, chance: float) -> int:
    (found,) = _native.sample(
        isa=isa.chosen(),
        logits=row[None],
        chains=[sampler.chain],
        draws=[draw, chance],
        texts=[text],
        masks=[],
        team=None,
        poll=0,
    )
    return found


@pytest.mark.parametrize("name", [name for name in ON if "mirostat" not in name and name != "adaptive"])
def test_draws_follow_the_distribution_of_the_reference(name: str) -> None:
    row, text = logits_of(1, 12) / 2, np.array([1, 2, 3, 9, 1, 2, 3, 9, 1, 2], np.int32)
    sampler = Sampler(**{**OFF, "temperature": 0.9, "seed": 5, **ON[name]})
    reference, draws = Reference(sampler), 10_000
    counts = np.bincount([sampler.sample(row, text=text) for _ in range(draws)], minlength=12)
    wanted = np.zeros(12)
    for chance, probability in ((0.0, sampler.xtc_probability), (1.0, 1 - sampler.xtc_probability)):
        left = reference.left(row, text.tolist(), chance)
        wanted[left.ids] += left.shares() * draws * probability
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(wanted))
    likely = wanted > 5
    assert likely.sum() > 1
    chi_square = ((counts - wanted)[likely] ** 2 / wanted[likely]).sum()
    freedom = int(likely.sum()) - 1
    # Wilson and Hilferty's bound, which one seed in a thousand exceeds
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_aims_at_its_surprise(version: int) -> None:
    rows = [logits_of(seed, 2000) / 1.5 for seed in range(200)]

    def mean_surprise(target: float) -> float:
        sampler = Sampler(temperature=1, mirostat=version, mirostat_tau=target, mirostat_eta=0.3, seed=0)
        found = []
        for row in rows:
            shares = np.exp(row.astype(np.float64) - row.max())
            found.append(-np.log2(shares[sampler.sample(row)] / shares.sum()))
        return float(np.mean(found[50:]))

    # It measures the surprise among the tokens that it keeps, which is less than that among all.
    means = [mean_surprise(target) for target in (0.5, 2.0, 3.5)]
    assert means[0] + 0.5 < means[1] < means[2] - 0.5
    assert all(mean > target for mean, target in zip(means, (0.5, 2.0, 3.5), strict=True))


SHARED: list[dict[str, Any]] = [{}, OFF, *({**OFF, **changes} for changes in ON.values())]


def test_many_rows_of_a_large_vocabulary_give_the_tokens_of_each_alone() -> None:
    size, count = 151936, len(SHARED)
    rows = np.stack([logits_of(i, size) for i in range(count)])
    texts = [np.array([i, 2, 3, i, 2, 3, i], np.int32) for i in range(count)]

    def samplers() -> list[Sampler]:
        return [Sampler(**{"temperature": 0.5 + i / 9, **SHARED[i]}, seed=i) for i in range(count)]

    together, alone, references = samplers(), samplers(), [Reference(sampler) for sampler in samplers()]
    generators = [np.random.default_rng(i) for i in range(count)]
    for _ in range(2):
        found = sample_rows(rows, together, texts=texts, team=Team(2))
        each = zip(alone, rows, texts, strict=True)
        assert found == [sampler.sample(row, text=text) for sampler, row, text in each]
        for i, token in enumerate(found):
            draw = generators[i].random()
            chance = generators[i].random() if alone[i].xtc_probability else 0.0
            assert token == references[i].choose(rows[i], texts[i].tolist(), draw, chance), SHARED[i]
    assert len(set(found)) > count // 2


@pytest.mark.parametrize("changes", [{"temperature": 0}, {"top_k": 3}, OFF, {}, {"repeat_penalty": 1.5}])
def test_a_mask_leaves_the_allowed_tokens(changes: dict[str, Any]) -> None:
    rows = np.stack([logits_of(i, 1000) for i in range(3)])
    texts = [np.arange(50, dtype=np.int32)] * 3
    allowed = np.random.default_rng(0).random((3, 1000)) < 0.3
    allowed[np.arange(3), rows.argmax(axis=1)] = False
    masks = [np.packbits(bits, bitorder="little") for bits in allowed]
    words = [np.pad(mask, (0, 128 - len(mask))).view(np.uint32) for mask in masks]
    forced = np.where(allowed, rows, -np.inf).astype(np.float32)
    masked = [Sampler(seed=i, **changes) for i in range(3)]
    plain = [Sampler(seed=i, **changes) for i in range(3)]
    for _ in range(20):
        found = sample_rows(rows, masked, texts=texts, masks=[words[0], None, words[2]])
        assert found == sample_rows(np.stack([forced[0], rows[1], forced[2]]), plain, texts=texts)
    assert masked[0].sample(rows[0], words[0]) == plain[0].sample(forced[0])
    with pytest.raises(InputError, match="the mask allows no token"):
        masked[0].sample(rows[0], np.zeros(32, np.uint32))
    with pytest.raises(ValueError, match="wanted a bit of a mask for each token"):
        masked[0].sample(rows[0], np.zeros(31, np.uint32))


def test_a_fork_goes_on_as_its_origin_does() -> None:
    rows = [logits_of(seed, 300) for seed in range(60)]
    for name in ("mirostat 1", "mirostat 2", "adaptive", "xtc"):
        first = Sampler(seed=3, **{**OFF, **ON[name]})
        for row in rows[:20]:
            first.sample(row)
        second = first.fork()
        tokens = [first.sample(row) for row in rows[20:]]
        assert [second.sample(row) for row in rows[20:]] == tokens, name
        fresh = Sampler(seed=3, **{**OFF, **ON[name]})
        assert [fresh.sample(row) for row in rows[20:]] != tokens, name


def test_penalties_look_at_their_window_only() -> None:
    row = np.zeros(10, np.float32)
    row[[4, 5]] = 2, 1.9
    for window, token in ((1, 4), (2, 5), (-1, 5), (0, 4)):
        sampler = Sampler(temperature=0, repeat_penalty=1.5, repeat_last_n=window)
        assert sampler.sample(row, text=np.array([0, 4, 1], np.int32)) == token
        assert sampler.sample(row) == 4


def test_top_p_and_min_p_come_before_temperature() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    hot = Sampler(temperature=100, top_k=0, top_p=0.7, min_p=0, seed=0)
    assert {hot.sample(logits) for _ in range(200)} == {0, 1}
    hot = Sampler(temperature=100, top_k=0, top_p=1, min_p=0.29, seed=0)
    assert {hot.sample(logits) for _ in range(200)} == {0, 1, 2}
    first = Sampler(temperature=100, top_k=0, top_p=0.7, min_p=0, seed=0, samplers=("temp", "top-p"))
    assert {first.sample(logits) for _ in range(200)} == {0, 1, 2}


def test_greedy_takes_the_lowest_of_the_likeliest() -> None:
    logits = np.array([0, 3, -1, 3], np.float32)
    assert Sampler(temperature=0).sample(logits) == 1
    assert Sampler(top_k=1, seed=0).sample(logits) == 1


def test_without_a_temperature_step_tokens_are_drawn() -> None:
    logits = np.zeros(100, np.float32)
    sampler = Sampler(temperature=0, samplers=("top_k",), seed=0)
    assert len({sampler.sample(logits) for _ in range(1000)}) == 40


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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"token 2 is .*: the weights, or numbers in the metadata, are damaged"):
        Sampler().sample(np.array([0, 1, value, 3], np.float32))


def test_biases_that_allow_no_token_are_refused() -> None:
    sampler = Sampler(logit_bias={0: -math.inf, 1: -math.inf})
    with pytest.raises(InputError, match="the logit biases allow no token"):
        sampler.sample(np.zeros(2, np.float32))


def test_a_bad_row_leaves_the_others_their_choices() -> None:
    rows = np.stack([logits_of(i, 300) for i in range(4)])
    rows[1, [7, 9]] = np.nan, np.inf
    rows[2] = -np.inf
    found = sample_rows(rows, [Sampler(temperature=0) for _ in range(4)], team=Team(2))
    assert found == [rows[0].argmax(), ~7, ~0, rows[3].argmax()]


def test_a_sampler_of_ones_own_is_left_to_the_caller() -> None:
    class Third(Sampler):
        def sample(self, logits: NDArray[np.float32], mask: object = None, text: object = None) -> int:
            return int(np.argsort(logits)[-3])

    rows = np.stack([logits_of(i, 300) for i in range(3)])
    order = np.argsort(-rows)
    greedy = Sampler(temperature=0)
    assert sample_rows(rows, [greedy, Third(), greedy]) == [order[0, 0], None, order[2, 0]]
    assert sample_rows(rows[:1], [Third()]) == [None]


def test_a_sampler_shows_the_seed_that_it_chose() -> None:
    first = Sampler()
    assert first.seed is not None
    assert Sampler().seed != first.seed
    logits = np.zeros(1000, np.float32)
    again = Sampler(seed=first.seed)
    assert [first.sample(logits) for _ in range(8)] == [again.sample(logits) for _ in range(8)]
