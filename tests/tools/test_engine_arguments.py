"""Threads and loading on the command line."""

import os
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.cpu.threads import Team, Threads, available_cpus, default_threads
from lltool.gguf.errors import InputError
from lltool.tools import cli
from lltool.tools.arguments import command_parser
from lltool.tools.engine_arguments import add_engine_arguments, engine_options, set_priority

pytestmark = pytest.mark.usefixtures("without_gpu")

FIRST = min(available_cpus())


def read(line: str) -> dict[str, Any]:
    parser = command_parser("x", "x", "x")
    add_engine_arguments(parser)
    return engine_options(parser.parse_args(line.split()))


def test_defaults() -> None:
    memory = {"load_mode": "mmap", "cache_type_k": None, "cache_type_v": None, "lora": []}
    assert read("") == {"threads": None, **memory, "deterministic": False, "placement": None}


@pytest.mark.parametrize(
    ("line", "decode", "batch", "poll"),
    [
        (f"-t {default_threads()}", Team(default_threads()), Team(default_threads()), 50),
        ("-t 3", Team(3), Team(3), 50),
        ("-t 1 -tb 4 --poll 0", Team(1), Team(4), 0),
        (f"-t 2 -C {1 << FIRST:x}", Team(2, (FIRST,)), Team(2, (FIRST,)), 50),
        (f"-t 2 -C 0x0 -Cr {FIRST}-{FIRST}", Team(2, (FIRST,)), Team(2, (FIRST,)), 50),
        ("-t 2 --cpu-strict 1 --poll 100", Team(2, strict=True), Team(2, strict=True), 100),
        (f"-t 2 --cpu-strict 1 -Cb {1 << FIRST:x} --cpu-strict-batch 0", Team(2, strict=True), Team(2, (FIRST,)), 50),
        (f"-t 2 -tb 3 -Crb {FIRST}-{FIRST}", Team(2), Team(3, (FIRST,)), 50),
    ],
)
def test_threads_as_llama_cpp_names_them(line: str, decode: Team, batch: Team, poll: int) -> None:
    assert read(line)["threads"] == Threads(decode, batch, poll)


def test_memory_and_exactness() -> None:
    found = read("-lm mlock --deterministic -ctk q8_0 -ctv f32")
    assert (found["load_mode"], found["deterministic"]) == ("mlock", True)
    assert (found["cache_type_k"], found["cache_type_v"]) == ("q8_0", "f32")
    assert [read(line)["load_mode"] for line in ("--load-mode none", "--no-mmap", "--mlock")] == [
        "none",
        "none",
        "mlock",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-t 0", "'0' is not a whole number of at least 1"),
        ("-tb 600", "threads_batch 600, wanted 1 to 512"),
        ("-C zz", "'zz' is not a mask of processors"),
        ("-Cb 0x", "'0x' is not a mask of processors"),
        ("-Cr 3", "'3' is not a range of processors"),
        ("-Crb 5-1", "'5-1' is not a range of processors"),
        ("-Cr 99999-99999", "this process may not use processor 99999"),
        ("--cpu-strict 2", "argument --cpu-strict: invalid choice"),
        ("--poll 101", "poll 101, wanted 0 to 100"),
        ("--poll=-1", "poll -1, wanted 0 to 100"),
        ("--prio 4", "'4' is none of -1, 0, 1, 2, 3"),
        ("-lm dio", "argument -lm/--load-mode: invalid choice"),
    ],
)
def test_bad_values_are_one_line(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-m", str(tmp_path / "m.gguf"), "-p", "x", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("lltool: error: ")
    assert message in err


def test_a_priority_is_set_or_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(os, "setpriority", lambda which, who, nice: set_to.append(nice))
    for level in (0, -1, 1, 3):
        set_priority(level)
    assert set_to == [5, -5, -20]

    def refuse(which: int, who: int, nice: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    with pytest.raises(InputError, match="--prio 2: this user may not set a higher priority"):
        set_priority(2)
