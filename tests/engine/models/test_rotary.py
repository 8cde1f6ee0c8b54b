"""Rotary frequencies against transformers, with the parameters that released models have."""

import numpy as np
import pytest

from lltool.engine.models.rotary import Rotary


@pytest.mark.parametrize(
    ("rotary", "parameters"),
    [
        (Rotary(5e5, 128, "linear", 8.0), {"rope_type": "linear", "factor": 8.0}),
        (
            Rotary(1e6, 128, "yarn", 4.0, 32768),  # Qwen 2.5 and 3
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        ),
        (
            Rotary(1e4, 128, "yarn", 16.0, 4096, 1.0, 64.0, 2.0),
            {
                "rope_type": "yarn",
                "factor": 16.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 64.0,
                "beta_slow": 2.0,
            },
        ),
    ],
    ids=lambda value: value.scaling if isinstance(value, Rotary) else "",
)
def test_frequencies_and_magnitude(rotary: Rotary, parameters: dict[str, object]) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=rotary.dims * 4,
        num_attention_heads=4,
        max_position_embeddings=4 * 32768,
        rope_parameters={"rope_theta": rotary.base, **parameters},
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[rotary.scaling](config, "cpu")
    np.testing.assert_allclose(rotary.frequencies(), frequencies.numpy(), rtol=2e-6)  # theirs are float32
    assert rotary.magnitude == pytest.approx(magnitude, rel=1e-6)


def test_divisors_come_before_scaling() -> None:
    plain = np.array(Rotary(1e4, 8).frequencies())
    divisors = np.array([1.0, 2.0, 4.0, 8.0])
    np.testing.assert_allclose(Rotary(1e4, 8, "linear", 2.0).frequencies(divisors), plain / divisors / 2)
