"""A tiny model with gated delta nets through the commands: importance, quantization, sensitivities, compensation."""

from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.eval.importance.inputs import LinearInputs
from lltool.eval.search.sensitivity import probe
from lltool.gguf.reader import open_gguf
from lltool.quant.importance import read_importance
from lltool.tools.cli import main
from tests.eval.importance.tiny_model import measure_tiny_model

SIZES = {
    "hidden_size": 256,
    "num_experts": 6,
    "moe_intermediate_size": 256,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 64,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
NET = ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha", "ssm_out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model `m.gguf`, and importance `i.gguf` of a text."""
    return measure_tiny_model("qwen35moe", tmp_path_factory.mktemp("linear"), **SIZES)


def test_every_matrix_of_a_net_has_importance(folder: Path) -> None:
    importance = read_importance(folder / "i.gguf")
    for part in NET:
        sums = importance.sums[f"blk.0.{part}.weight"]
        assert sums.shape == (1, 256)
        assert sums.min() > 0
        assert np.array_equal(sums, importance.sums["blk.0.attn_qkv.weight"]) == (part != "ssm_out")
    assert not any("conv1d" in name or "ssm_norm" in name for name in importance.sums)


def test_quantized_as_llama_quantize_does(folder: Path) -> None:
    """Its rules count attn_qkv among the matrices of values, of which the last layers have more bits."""
    command = ["quantize", "--imatrix", f"{folder}/i.gguf", f"{folder}/m.gguf", f"{folder}/q.gguf", "Q4_K_M"]
    assert main(command) == 0
    with open_gguf(folder / "q.gguf") as file:
        types = {tensor.name: tensor.type.name for tensor in file.tensors}
    assert {types[f"blk.0.{part}.weight"] for part in NET} == {"Q4_K"}
    assert types["blk.1.attn_v.weight"] == "Q6_K"
    kept = ("blk.0.ssm_conv1d.weight", "blk.0.ssm_a", "blk.0.ssm_dt.bias", "blk.0.ffn_gate_inp.weight")
    assert {types[name] for name in kept} == {"F32"}
    tokens = np.arange(100) % 300
    made = []
    for options in ({"executor": "reference"}, {"precision": "f32"}, {"precision": "int8"}):
        with load_model(folder / "q.gguf", **options) as model:  # type: ignore[arg-type]
            made.append(model.forward([(model.new_sequence(), tokens, "all")]).all())
    wanted, exact, rounded = made
    assert np.abs(exact - wanted).max() < 1e-4 * np.ptp(wanted)
    assert np.median(np.sqrt(np.square(rounded - wanted).mean(axis=1))) < 0.08 * wanted.std()


def test_sensitivities_and_inputs_see_states_of_their_own(folder: Path) -> None:
    """Windows of a text are sequences of their own; what a part of the program keeps of them begins at zero."""
    windows = np.random.default_rng(1).integers(0, 300, (3, 32)).astype(np.int32)
    names = [f"blk.0.{part}.weight" for part in NET]
    with load_model(folder / "m.gguf", context=64, precision="f32") as model:
        found: dict[str, float] = {}
        probe(model.program, windows, names, lambda _, values: values * 1.3, found.__setitem__, threads=1)
        assert list(found) == names
        assert min(found.values()) > 1e-6
        alone: dict[str, float] = {}
        for window in windows:
            each: dict[str, float] = {}
            probe(model.program, window[None], names, lambda _, x: x * 1.3, each.__setitem__, threads=1)
            alone = {name: alone.get(name, 0) + value / len(windows) for name, value in each.items()}
        assert found == pytest.approx(alone, rel=1e-3)
        inputs = LinearInputs(model.program, windows, threads=1)
        assert all(inputs.has(name) for name in names)
        inputs.correlation("blk.1.attn_output.weight")  # what comes before it runs
