"""Many clients of a real model at once: greedy answers are those of each question alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.server.load import drive, start_server


@pytest.mark.slow
def test_answers_under_load_are_those_alone(real_model: Callable[[str], Path]) -> None:
    options = ["-c", "2048", "--parallel", "4", "--deterministic"]
    process, url = start_server([real_model("smollm2-q4_1")], *options)
    try:
        outcome = drive(url, process.pid, clients=8, seconds=5, counts=(4, 16))
    finally:
        process.terminate()
    assert not outcome.wrong
    assert outcome.counts["answered"] > 0
    assert process.wait() == 143
