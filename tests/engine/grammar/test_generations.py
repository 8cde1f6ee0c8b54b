"""Texts of a real model at temperature 1.5 are valid under every constraint, or cut off for their length."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.engine.model import load_model
from tests.engine.grammar.generations import generations


@pytest.mark.slow
def test_texts_at_a_high_temperature_are_valid(real_model: Callable[[str], Path]) -> None:
    with load_model(real_model("smollm2-q4_1"), context=256, sequences=32) as model:
        ends, invalid = generations(model, 50, tokens=60)
    assert invalid == []
    assert ends.total() == 50
    assert ends["stop"] >= 20
