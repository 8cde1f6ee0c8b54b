"""Draws equal those of a C++ program with llama-perplexity's calls, compiled with GCC 12 on x86-64."""

from itertools import islice

import pytest

from lltool.eval.tasks.draw import draw_scaled, draw_uniform, mt19937


def test_words_are_those_of_the_standard_library() -> None:
    assert list(islice(mt19937(1), 3)) == [1791095845, 4282876139, 3093770124]
    # The check in the C++ standard: the 10000th word of the default seed.
    assert next(islice(mt19937(5489), 9999, None)) == 4123659995


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (5, [2, 3, 2, 1, 0]),
        (25, [10, 23, 16, 20, 0, 2, 5, 17, 2, 3, 1, 5]),
        (10042, [4187, 10012, 7232, 9361, 1, 1285, 3034, 10025, 1472, 2368, 926, 3978]),
    ],
)
def test_uniform_draws_take_from_those_left(count: int, expected: list[int]) -> None:
    left = list(range(count))  # `expected` holds places among those left, as the distribution returns them
    assert draw_uniform(count, 12) == [left.pop(place) for place in expected]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (5, [2, 3, 4, 1, 0]),
        (25, [10, 23, 16, 20, 0, 2, 5, 17, 19, 3, 1, 18]),
        (1267, [528, 1262, 911, 1178, 0, 161, 381, 1258, 184, 296, 116, 498]),
    ],
)
def test_scaled_draws_round_as_float32(count: int, expected: list[int]) -> None:
    assert draw_scaled(count, 12) == expected


def test_whole_files_are_drawn_in_the_same_order() -> None:
    assert _digest(draw_uniform(10042, 10042)) == 10323595997416354317
    assert _digest(draw_scaled(14042, 14041)) == 14025754879495568868


def _digest(numbers: list[int]) -> int:
    digest = 0
    for number in numbers:
        digest = (digest * 31 + number) % 2**64
    return digest
