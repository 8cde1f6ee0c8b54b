"""gpt-oss with experts in MXFP4, as it was published: the same bits in GGUF, in the order of its blocks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lltool.engine.model import load_model
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.codec import decode
from lltool.quant.convert.conversion import convert, plan_conversion
from tests.tiny_checkpoints import make_checkpoint

EXPERTS, WIDTH, HIDDEN, LAYERS = 3, 64, 96, 2
Arrays = dict[str, NDArray[Any]]

# The values of E2M1: a bit for the sign, two of the exponent, one of the mantissa.
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def unpacked(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(..., rows, columns): in each byte, the low nibble comes first; a scale is a power of two with bias 127."""
    values = np.stack([VALUES[blocks & 15], VALUES[blocks >> 4]], axis=-1).reshape(*blocks.shape[:-1], 32)
    scaled: NDArray[np.float32] = values * np.exp2(scales.astype(np.float32) - 127)[..., None]
    return scaled.reshape(*scales.shape[:-1], -1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers whose experts are random blocks of MXFP4."""
    folder = tmp_path_factory.mktemp("packed")
    sizes = {"num_hidden_layers": LAYERS, "intermediate_size": HIDDEN, "num_local_experts": EXPERTS}
    make_checkpoint("gpt-oss", folder, dtype="bfloat16", **sizes)
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    rng = np.random.default_rng(0)
    tensors = load_torch(folder / "model.safetensors")
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.mlp.experts."
        for part, rows, columns in (("gate_up_proj", 2 * HIDDEN, WIDTH), ("down_proj", WIDTH, HIDDEN)):
            del tensors[name + part]
            shape = (EXPERTS, rows, columns // 32)
            tensors[f"{name}{part}_blocks"] = torch.from_numpy(rng.integers(0, 256, (*shape, 16), np.uint8))
            tensors[f"{name}{part}_scales"] = torch.from_numpy(rng.integers(120, 126, shape, np.uint8))
    save_torch(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    return folder


def bytes_of(folder: Path) -> Arrays:
    from safetensors.torch import load_file as load_torch

    packed = {name: x.numpy() for name, x in load_torch(folder / "model.safetensors").items() if x.dtype.itemsize == 1}
    assert len(packed) == 4 * LAYERS
    return packed


def test_blocks_keep_their_values(checkpoint: Path, tmp_path: Path) -> None:
    conversion = plan_conversion(checkpoint)
    assert conversion.notes == [
        "4 weights are packed (mxfp4)",
        "6 tensors stay in MXFP4, the grid of the checkpoint: their values are exact, not rounded again",
    ]
    found = {tensor.name: tensor for tensor in conversion.model.tensors}
    packed = bytes_of(checkpoint)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.mlp.experts."
        gate_up, down = (
            unpacked(packed[f"{name}{part}_blocks"], packed[f"{name}{part}_scales"])
            for part in ("gate_up_proj", "down_proj")
        )
        expected = {"gate": gate_up[:, 0::2], "up": gate_up[:, 1::2], "down": down}
        for part, values in expected.items():
            tensor = found[f"blk.{layer}.ffn_{part}_exps.weight"]
            assert (tensor.type, tensor.shape) == (GGMLType.MXFP4, values.shape)
            data = tensor.data()
            np.testing.assert_array_equal(decode(data, tensor.type).reshape(values.shape), values)
            np.testing.assert_array_equal(tensor.read(1, 70), data[1:70])  # any rows, across experts
    with load_model(convert(checkpoint, tmp_path / "m.gguf")) as model:
        assert np.isfinite(model.evaluate(model.new_sequence(), [1, 2, 3])).all()
    types = {tensor.type for tensor in plan_conversion(checkpoint, outtype="f16").model.tensors}
    assert types == {GGMLType.F16, GGMLType.F32}


def edited(folder: Path, copy: Path, change: Callable[[Arrays], Arrays], method: str = "mxfp4") -> Path:
    """A copy with only its tensors of bytes, changed, and one more."""
    copy.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).symlink_to(folder / name)
    config = json.loads((folder / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    save_file(change(bytes_of(folder)), copy / "model.safetensors")
    assert load_file(copy / "model.safetensors")
    return copy


FIRST = "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("change", "method", "message"),
    [
        (
            lambda x: {k: v for k, v in x.items() if k != f"{FIRST}_scales"},
            "mxfp4",
            r"down_proj_blocks: is packed, but its part .*scales",
        ),
        (
            lambda x: x | {f"{FIRST}_scales": x[f"{FIRST}_scales"][:, :-1].copy()},
            "mxfp4",
            r"down_proj_scales: shape \(3, 63, 3\), wanted \(3, 64, 3\), as model.*down_proj_blocks",
        ),
        (
            lambda x: x | {f"{FIRST}_blocks": x[f"{FIRST}_blocks"][..., :8].copy()},
            "mxfp4",
            r"down_proj_blocks: shape \(3, 64, 3, 8\), wanted four axes, the last of 16",
        ),
        (dict, "fp8", r"down_proj_blocks: is no plain float, nor packed as .* says \('fp8'\)"),
    ],
)
def test_what_does_not_fit_is_refused(
    checkpoint: Path, tmp_path: Path, change: Callable[[Arrays], Arrays], method: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan_conversion(edited(checkpoint, tmp_path / "edited", change, method))
