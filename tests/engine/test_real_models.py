"""Shipped model files on the executors: what they say, and that the executors agree on it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import load_model

TEXT = "The capital of France is"

MODELS = [
    ("smollm2-q4_1", " Paris"),
    pytest.param("gemma3-270m-q4_k_m", " the", marks=pytest.mark.slow),
    pytest.param("qwen25coder-0.5b-q4_k_m", " Paris", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "wanted"), MODELS)
def test_next_token_and_agreement(real_model: Callable[[str], Path], name: str, wanted: str) -> None:
    path = real_model(name)
    logits = {}
    for executor, precision in (("reference", "f32"), ("cpu", "f32"), ("cpu", "int8")):
        with load_model(path, executor=executor, precision=precision, context=64) as model:
            tokens = model.tokenizer.encode(TEXT)
            logits[executor, precision] = model.forward([(model.new_sequence(), tokens, "all")]).all()
            assert model.tokenizer.decode([int(logits[executor, precision][-1].argmax())]) == wanted

    reference = logits["reference", "f32"]
    spread = np.ptp(reference)
    # The same sums in float32 in another order; int8 activations carry an error of 1/254 of their block's largest.
    assert np.abs(logits["cpu", "f32"] - reference).max() < 1e-5 * spread
    assert np.abs(logits["cpu", "int8"] - reference).max() < 0.05 * spread
