"""The choice of a file, on made-up candidates."""

import pytest

from lltool.eval.selection.choice import RatedFile, choose
from lltool.gguf.errors import InputError

GB = 10**9


def candidate(name: str, memory: float, loss: float, speed: float) -> RatedFile:
    return RatedFile(name, round(memory * GB), loss, loss / 20, speed)


FILES = [
    candidate("F16", 16, 0.0, 5),
    candidate("Q8_0", 9, 0.002, 9),
    candidate("Q6_K", 7, 0.01, 11),
    candidate("Q5_K_M", 6, 0.03, 13),
    candidate("Q4_K_M", 5, 0.06, 15),
    candidate("Q4_0", 4.8, 0.15, 18),
    candidate("Q2_K", 3, 0.9, 20),
]


@pytest.mark.parametrize(
    ("limit", "preference", "name"),
    [
        (32, "quality", "F16"),
        (8, "quality", "Q6_K"),
        (32, "balance", "Q5_K_M"),  # the fastest that loses at most 0.05
        (5.5, "balance", "Q4_K_M"),  # none that fits loses so little: the least
        (32, "speed", "Q4_0"),
        (4, "speed", "Q2_K"),
        (9, "quality", "Q8_0"),  # as much as the limit fits
        (8.999, "quality", "Q6_K"),
    ],
)
def test_choice(limit: float, preference: str, name: str) -> None:
    assert choose(FILES, round(limit * GB), preference).candidate.name == name


def test_among_equally_fast_files_the_better_one_is_taken() -> None:
    close = [candidate("A", 4, 0.04, 15.1), candidate("B", 5, 0.02, 15.0), candidate("C", 5, 0.01, 12)]
    assert choose(close, 8 * GB).candidate.name == "B"
    assert choose(close, 8 * GB).reason.endswith(
        "and of these it is about as fast as A, the fastest, and loses less: it loses 0.0200 ± 0.0010 nats a token"
    )
    apart = [candidate("A", 4, 0.04, 15.0), candidate("B", 5, 0.02, 14.2)]
    assert choose(apart, 8 * GB).candidate.name == "A"


def test_files_that_do_not_fit_are_never_taken() -> None:
    tempting = [RatedFile("big", 9 * GB, 0.0, 0.0, 99.0), candidate("small", 7, 0.04, 3)]
    for preference in ("quality", "balance", "speed"):
        assert choose(tempting, 8 * GB, preference).candidate.name == "small"


def test_the_reason_has_the_numbers() -> None:
    assert choose(FILES, 8 * GB).reason == (
        "Q5_K_M takes 5.59 GiB of 7.45 GiB and generates 13.0 tokens a second; of 5 that fit, 2 lose at most 0.05 nats "
        "a token, and of these it is the fastest: it loses 0.0300 ± 0.0015 nats a token"
    )
    assert choose(FILES, 5 * GB, "quality").reason == (
        "Q4_K_M takes 4.66 GiB of 4.66 GiB and generates 15.0 tokens a second; of 3 that fit, it loses least, "
        "0.0600 ± 0.0030 nats a token"
    )
    assert "(none loses as little as 0.05 nats)" in choose(FILES, 5 * GB).reason


def test_nothing_fits() -> None:
    unmeasured = RatedFile("Q2_K", 3 * GB)
    with pytest.raises(InputError, match=r"nothing fits 1\.86 GiB: Q2_K, the smallest, takes 2\.79 GiB; ask for less"):
        choose([*FILES[:-1], unmeasured], 2 * GB)
