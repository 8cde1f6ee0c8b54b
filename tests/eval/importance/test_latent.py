"""A tiny model with latent attention through the commands: importance of each head's matrices, and quantization."""

from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.eval.importance.inputs import LinearInputs
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.codec import decode, encode
from lltool.quant.importance import read_importance
from lltool.tools.cli import main
from tests.eval.importance.tiny_model import measure_tiny_model

HEADS, PLAIN, RANK, VALUE = 3, 64, 256, 32
SIZES = {"kv_lora_rank": RANK, "qk_nope_head_dim": PLAIN, "v_head_dim": VALUE, "hidden_size": 256, "q_lora_rank": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model `m.gguf`, and importance `i.gguf` of a text."""
    return measure_tiny_model("deepseek3", tmp_path_factory.mktemp("latent"), **SIZES)


def test_the_matrices_of_all_heads_have_one_count(folder: Path) -> None:
    """In the shapes of llama-imatrix: the columns of all heads in turn."""
    importance = read_importance(folder / "i.gguf")
    tokens = importance.counts["blk.0.attn_kv_a_mqa.weight"]
    for part, columns in (("k_b", PLAIN), ("v_b", RANK)):
        name = f"blk.1.attn_{part}.weight"
        assert importance.sums[name].shape == (1, HEADS * columns)
        assert importance.sums[name].min() > 0
        assert np.array_equal(importance.counts[name], tokens)


def test_a_head_is_encoded_with_its_own_importance(folder: Path) -> None:
    command = ["quantize", "--imatrix", f"{folder}/i.gguf", f"{folder}/m.gguf", f"{folder}/q.gguf", "Q4_K_M"]
    assert main(command) == 0
    importance = read_importance(folder / "i.gguf")
    with open_gguf(folder / "q.gguf") as file, open_gguf(folder / "m.gguf") as original:
        # 64 columns fill no block of 256: llama-quantize's substitute for Q4_K.
        for part, columns, type in (("k_b", PLAIN, "Q5_0"), ("v_b", RANK, "Q4_K"), ("kv_a_mqa", 256, "Q4_K")):
            tensor, plain = (f.tensor(f"blk.1.attn_{part}.weight") for f in (file, original))
            assert (tensor.type.name, tensor.shape) == (type, plain.shape)
            if len(tensor.shape) < 3:
                continue
            means, rows = importance.means(tensor.name).reshape(HEADS, columns), tensor.rows // HEADS
            for head in range(HEADS):
                weights = decode(plain.read(head * rows, (head + 1) * rows), GGMLType.F32)
                expected = encode(weights, tensor.type, means[head])
                np.testing.assert_array_equal(tensor.read(head * rows, (head + 1) * rows), expected)
    tokens = np.arange(100) % 300
    made = []
    for options in ({"executor": "reference"}, {"precision": "f32"}, {"precision": "int8"}):
        with load_model(folder / "q.gguf", **options) as model:  # type: ignore[arg-type]
            made.append(model.forward([(model.new_sequence(), tokens, "all")]).all())
    wanted, exact, rounded = made
    assert np.abs(exact - wanted).max() < 1e-4 * np.ptp(wanted)
    # Activations of 8 bits: half of the tokens choose the same experts in all layers, and are near.
    assert np.median(np.sqrt(np.square(rounded - wanted).mean(axis=1))) < 0.08 * wanted.std()


def test_inputs_for_compensation_leave_heads_out(folder: Path) -> None:
    with load_model(folder / "m.gguf", context=64, precision="f32") as model:
        inputs = LinearInputs(model.program, np.arange(64, dtype=np.int32).reshape(2, 32), threads=1)
        assert not any(inputs.has(f"blk.1.attn_{part}.weight") for part in ("k_b", "v_b"))
        assert inputs.has("blk.1.attn_q_b.weight")
        inputs.correlation("blk.1.attn_output.weight")  # the parts before it, with heads, run
