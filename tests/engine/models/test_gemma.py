"""Gemma 3n and Gemma 4: what published checkpoints have that transformers does not write, and llama.cpp's logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.gguf.reader import open_gguf
from lltool.quant.convert.conversion import convert
from tests.engine.models.test_architectures import assert_close, difference, load, make_case, prompt
from tests.libllama import MISSING, find_library, logits_of

# What llama.cpp has as constants or wants.
AS_PUBLISHED: dict[str, Any] = {
    "num_hidden_layers": 24,
    "num_kv_shared_layers": 4,
    "layer_types": None,
    "laurel_rank": 64,
    "hidden_size_per_layer_input": 256,
    "altup_num_inputs": 4,
    "activation_sparsity_pattern": None,
}


def add_unread_keys(folder: Path, layers: range, width: int, rows: int) -> None:
    """Keys and values of layers that read those of earlier ones, which published checkpoints have."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for name in [f"model.layers.{layer}.self_attn." for layer in layers]:
        for part in ("k_proj", "v_proj"):
            tensors[f"{name}{part}.weight"] = np.ones((rows, width), np.float32)
        tensors[f"{name}k_norm.weight"] = np.ones(rows, np.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_keys_that_nothing_reads(tmp_path: Path) -> None:
    _, wanted = make_case("gemma3n", tmp_path)
    add_unread_keys(tmp_path, range(4, 7), 48, 24)
    path = convert(tmp_path, tmp_path / "all.gguf", outtype="f32")
    with open_gguf(path) as file:
        assert "blk.6.attn_k_norm.weight" in {tensor.name for tensor in file.tensors}
    with load(path, "cpu") as model:
        assert_close(model.forward([(model.new_sequence(), prompt(), "all")]).all(), wanted)


def test_tokens_without_an_input_of_layers_have_the_first_ones(tmp_path: Path) -> None:
    """Tokens of images are the last ones, and the table of inputs ends before them."""
    path, wanted = make_case("gemma3n", tmp_path, vocab_size_per_layer_input=200)
    with load(path, "cpu") as model:
        assert_close(model.forward([(model.new_sequence(), prompt(), "all")]).all(), wanted)


def as_llama_cpp(folder: Path, tokens: int) -> NDArray[np.float32]:
    """Logits by transformers with llama.cpp's GELU, which is looked up in half precision and so changes the choice of
    experts, and with its deviation of gates, which divides by one less."""
    import torch
    from transformers import AutoModelForCausalLM

    class HalfGelu(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            half = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
            return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, half))

    def sparsify(gates: torch.Tensor) -> torch.Tensor:
        deviation = 1.6448533535003662 * gates.std(dim=-1, keepdim=True)
        return torch.relu(gates - gates.mean(dim=-1, keepdim=True) - deviation)

    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for module in oracle.modules():
        if hasattr(module, "act_fn"):
            module.act_fn = HalfGelu()
        if hasattr(module, "_gaussian_topk"):
            module._gaussian_topk = sparsify
    with torch.no_grad():
        logits: NDArray[np.float32] = oracle(torch.tensor(prompt()[None, :tokens])).logits[0].numpy()
    return logits


@pytest.mark.rival
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "tokens", "changes"), [("gemma3n", 100, AS_PUBLISHED), ("gemma4", 300, {}), ("gemma4-moe", 300, {})]
)
def test_llama_cpp_computes_the_same(case: str, tokens: int, changes: dict[str, Any], tmp_path: Path) -> None:
    llama = find_library() or pytest.skip(MISSING)
    path, _ = make_case(case, tmp_path, **changes)
    if case == "gemma3n":
        add_unread_keys(tmp_path, range(20, 24), 48, 24)
        path = convert(tmp_path, tmp_path / "all.gguf", outtype="f32")
    theirs = logits_of(llama, path, prompt()[:tokens])
    assert theirs is not None
    assert difference(theirs, as_llama_cpp(tmp_path, tokens)) < 1e-3
