"""Architectures against transformers: logits of small random checkpoints, long prompts, every executor."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.model import Model, load_model
from tests.tiny_checkpoints import YARN, make_checkpoint

EXECUTORS = ["reference", "cpu"]
TOKENS = 300

# Two float32 computations of the same sums in another order, as a part of the logits' spread.
TOLERANCE = 1e-4

GEMMA_LINEAR: dict[str, Any] = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    }
}

# name: (family of tiny_checkpoints, config beyond it)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, all heads, biases": (
        "llama",
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama, one key head, wide heads": ("llama", {"num_key_value_heads": 1, "head_dim": 32}),
    "llama 3.1 rope": ("llama3-rope", {}),
    "llama, linear rope": ("llama-linear", {}),
    "llama, yarn": ("llama-yarn", {}),
    "mistral, window 64": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, untied, yarn": ("qwen2-yarn", {}),
    "qwen2, yarn with its own magnitude": (
        "qwen2-yarn",
        {"rope_parameters": YARN["rope_parameters"] | {"attention_factor": 0.7, "beta_fast": 16.0, "beta_slow": 2.0}},
    ),
    "llama, yarn with scales of both kinds": (
        "llama-yarn",
        {"rope_parameters": YARN["rope_parameters"] | {"mscale": 0.7, "mscale_all_dim": 1.3}},
    ),
    "qwen2, last layers slide": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1, "tie_word_embeddings": False},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, untied": ("qwen3", {"tie_word_embeddings": False}),
    "gemma3, window 64": ("gemma3", {}),
    "gemma3, linear rope, own scale": ("gemma3", {"query_pre_attn_scalar": 20, **GEMMA_LINEAR}),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, NDArray[np.float32]]]:
    """Gives a case's model as F32 GGUF and transformers' logits (T, V) of `prompt()`, made once."""
    import torch
    from transformers import AutoModelForCausalLM

    from lltool.quant.convert import convert

    @cache
    def make(case: str) -> tuple[Path, NDArray[np.float32]]:
        family, overrides = CASES[case]
        folder = tmp_path_factory.mktemp("checkpoint")
        make_checkpoint(family, folder, **overrides)
        path = convert(folder, folder / "model.gguf", outtype="f32")
        oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            logits = oracle(torch.tensor(prompt()[None])).logits[0].numpy()
        return path, logits

    return make


def prompt() -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, 300, TOKENS)


def load(path: Path, executor: str, **options: Any) -> Model:
    return load_model(path, executor=executor, precision="f32", **options)


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    error = np.abs(found - wanted).max() / np.ptp(wanted)
    assert error < TOLERANCE


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", CASES)
def test_logits_of_a_prompt(checkpoint: Any, case: str, executor: str) -> None:
    path, wanted = checkpoint(case)
    with load(path, executor) as model:
        logits = model.forward([(model.new_sequence(), prompt(), "all")]).all()
    assert_close(logits, wanted)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", CASES)
def test_logits_token_by_token(checkpoint: Any, case: str, executor: str) -> None:
    path, wanted = checkpoint(case)
    with load(path, executor) as model:
        sequence = model.new_sequence()
        logits = np.stack([model.evaluate(sequence, [token]) for token in prompt()])
    assert_close(logits, wanted)
