"""The thread pool with several callers, after an exception and after a fork: check_pool.cpp says what has to hold."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


def build(target: Path, *flags: str) -> Path:
    sources = [REPOSITORY / "tests/engine/cpu/check_pool.cpp", REPOSITORY / "engine/cpu/csrc/pool.cpp"]
    folders = [f"-I{REPOSITORY / folder}" for folder in ("engine/cpu/csrc", "quant/csrc")]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++17", "-O1", "-pthread", *flags, *folders, *sources, "-o", target], check=True)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-fsanitize=thread",)], ids=["plain", "thread-sanitizer"])
def test_callers_take_turns_and_exceptions_reach_them_and_children_end(tmp_path: Path, flags: tuple[str, ...]) -> None:
    program = build(tmp_path / "check_pool", *flags)
    arguments = ["no-fork"] if flags else []
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
