"""Inputs that were faults once, and each target's seeds, through the targets that `make fuzz` runs."""

from pathlib import Path

import pytest

from lltool.gguf.errors import InputError
from tests.fuzz.choices import Choices
from tests.fuzz.targets import TARGETS

MENDED = Path(__file__).parent / "fuzz" / "mended"


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    for seed in TARGETS[name].seeds(tmp_path):
        for data in (seed, seed[: len(seed) // 2], b""):
            check(name, data, tmp_path)


def test_mended_faults_stay_mended(tmp_path: Path) -> None:
    for path in sorted(MENDED.glob("[!.]*")):
        check(path.name.partition("-")[0], path.read_bytes(), tmp_path)


def check(name: str, data: bytes, folder: Path) -> None:
    message = ""
    try:
        TARGETS[name].run(data, folder)
    except InputError as error:
        message = str(error)
    assert "\n" not in message


def test_choices_are_those_of_the_bytes() -> None:
    choices = Choices(b"\x05\0\0\0abc\x01")
    assert choices.number(3, 12) == 8
    assert choices.bytes(3) == b"abc"
    assert not choices.is_spent
    assert (choices.one_of("xyz"), choices.is_spent) == ("y", True)
    assert (choices.bytes(2), choices.number(7, 9), choices.rest()) == (b"\0\0", 7, b"")
