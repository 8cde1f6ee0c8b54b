"""Packed checkpoints convert to the same bits as their dequantized twins."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.codec import decode
from lltool.quant.convert.checkpoint import open_checkpoint
from lltool.quant.convert.conversion import convert, plan_conversion
from tests import packed_checkpoints as packed
from tests.tiny_checkpoints import make_checkpoint

FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
RAGGED = {**FP8, "weight_block_size": [48, 40]}
FBGEMM = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["mlp.down_proj"]}


def gptq(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, **more}


def compressed(**weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
INT4_WIDE = {**INT4, "group_size": 64, "symmetric": False}
INT4_CHANNEL = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": False}
INT8_GROUP = {**INT4, "num_bits": 8}
INT3_GROUP = {**INT4, "num_bits": 3, "symmetric": False}
W8A8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8_CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel"}
MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}

PACKED, NAIVE = "PackedQuantizationCompressor", "NaiveQuantizationCompressor"

CASES: dict[str, tuple[Callable[[], packed.Pack], dict[str, Any]]] = {
    "fp8-block": (lambda: packed.fp8_blocks(32, 32), FP8),
    "fp8-block-bf16-scales": (lambda: packed.fp8_blocks(32, 32, torch.bfloat16), FP8),
    "fp8-ragged": (lambda: packed.fp8_ragged, RAGGED),
    "fp8-tensor": (lambda: packed.fp8_tensor, {"quant_method": "fp8"}),
    "fp8-channel": (lambda: packed.fp8_blocks(1, None, name="weight_scale"), FBGEMM),
    "modelopt-fp8": (lambda: packed.fp8_tensor, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "modelopt-nvfp4": (lambda: packed.nvfp4_modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "ct-nvfp4": (lambda: packed.compressed("NVFP4PackedCompressor", **NVFP4), compressed(**NVFP4)),
    "ct-mxfp4": (lambda: packed.compressed("MXFP4PackedCompressor", **MXFP4), compressed(**MXFP4)),
    "ct-fp8": (lambda: packed.compressed(NAIVE, **FP8_CHANNEL), compressed(**FP8_CHANNEL)),
    "ct-int8": (lambda: packed.compressed(NAIVE, torch.float32, **W8A8), compressed(**W8A8)),
    "ct-int4": (lambda: packed.compressed(PACKED, **INT4), compressed(**INT4)),
    "ct-int4-wide": (lambda: packed.compressed(PACKED, **INT4_WIDE), compressed(**INT4_WIDE)),
    "ct-int4-channel": (lambda: packed.compressed(PACKED, **INT4_CHANNEL), compressed(**INT4_CHANNEL)),
    "ct-int8-group": (lambda: packed.compressed(PACKED, **INT8_GROUP), compressed(**INT8_GROUP)),
    "ct-int3": (lambda: packed.compressed(PACKED, **INT3_GROUP), compressed(**INT3_GROUP)),
    "gptq-2": (lambda: packed.gptq(2, 32), gptq(2, 32)),
    "gptq-3": (lambda: packed.gptq(3, 64), gptq(3, 64)),
    "gptq-4": (lambda: packed.gptq(4, 32), gptq(4, 32)),
    "gptq-4-without-g_idx": (lambda: packed.gptq(4, 32, named=False), gptq(4, 32)),
    "gptq-4-v2": (lambda: packed.gptq(4, 32, version=2), gptq(4, 32, checkpoint_format="gptq_v2")),
    "gptq-4-act-order": (lambda: packed.gptq(4, 32, act_order=True), gptq(4, 32, desc_act=True)),
    "gptq-4-symmetric": (lambda: packed.gptq(4, 64, symmetric=True), gptq(4, 64, sym=True)),
    "gptq-8": (lambda: packed.gptq(8, -1), gptq(8, -1)),
    "gptq-8-symmetric": (lambda: packed.gptq(8, 32, symmetric=True), gptq(8, 32)),
    "awq": (lambda: packed.awq(32), AWQ),
    "bitnet": (lambda: packed.bitnet(True), {"quant_method": "bitnet"}),
    "bitnet-auto": (lambda: packed.bitnet(False), {"quant_method": "bitnet", "linear_class": "autobitlinear"}),
}
EXACT = {
    "ct-mxfp4": "MXFP4",
    "ct-int4": "Q4_0",
    "ct-int8-group": "Q8_0",
    "gptq-4-symmetric": "Q4_0",
    "gptq-8-symmetric": "Q8_0",
}
"""The packings whose grid a type of GGUF has."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose layers have rows of 128 and 192 weights."""
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    return make_checkpoint("llama", tmp_path_factory.mktemp("plain") / "model", **sizes)


def write(case: str, plain: Path, folder: Path) -> tuple[Path, Path]:
    pack, settings = CASES[case]
    torch.manual_seed(1)
    keep = tuple(settings.get("modules_to_not_convert") or ())
    return packed.write_packed(plain, folder, pack(), settings, keep)


@pytest.mark.parametrize("case", CASES)
def test_weights_equal_the_library_s(case: str, plain: Path, tmp_path: Path) -> None:
    """Exact, in float32: codes times scales. The conversion of the dequantized checkpoint is the oracle."""
    folder, dequantized = write(case, plain, tmp_path)
    made = convert(folder, tmp_path / "made.gguf", "f32")
    with open_gguf(made) as one, open_gguf(convert(dequantized, tmp_path / "wanted.gguf", "f32")) as other:
        assert [tensor.name for tensor in one.tensors] == [tensor.name for tensor in other.tensors]
        for tensor, wanted in zip(one.tensors, other.tensors, strict=True):
            values, expected = (t.data().view(np.float32) for t in (tensor, wanted))
            np.testing.assert_array_equal(values, expected, err_msg=tensor.name)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_read_in_any_pieces(case: str, plain: Path, tmp_path: Path) -> None:
    """The writer asks for rows from anywhere, of which there may be one, or none."""
    folder, _ = write(case, plain, tmp_path)
    tensor = open_checkpoint(folder).tensor("model.layers.0.mlp.gate_proj.weight")
    whole = tensor.data()
    for start, stop in ((0, 1), (5, 6), (31, 33), (47, 130), (191, 192), (7, 7)):
        np.testing.assert_array_equal(tensor.read(start, stop), whole[start:stop], err_msg=str(start))


def test_a_config_of_16_bits_does_not_round_what_is_quantized(plain: Path, tmp_path: Path) -> None:
    folder, dequantized = write("fp8-ragged", plain, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    wanted = plan_conversion(dequantized, "q8_0").model.tensors
    for tensor, expected in zip(plan_conversion(folder, "q8_0").model.tensors, wanted, strict=True):
        np.testing.assert_array_equal(tensor.data(), expected.data(), err_msg=tensor.name)


def test_tensors_keep_no_rows(plain: Path, tmp_path: Path) -> None:
    """Of 14 matrices of 64 to 96 KiB as float32, only the last one's rows stay in memory, for the next reader."""
    folder, _ = write("fp8-block", plain, tmp_path)
    tensors = [tensor for tensor in plan_conversion(folder, "bf16").model.tensors if len(tensor.shape) > 1]
    tensors[1].data()  # makes the tables
    tracemalloc.start()
    try:
        for tensor in tensors:
            tensor.data()
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()


def test_auto_takes_the_type_that_the_config_states(plain: Path, tmp_path: Path) -> None:
    folder, _ = write("fp8-block", plain, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    plan = plan_conversion(folder)
    types = {tensor.name: tensor.type.name for tensor in plan.model.tensors}
    assert types["blk.0.ffn_up.weight"] == "F16"
    assert types["token_embd.weight"] == "F32"  # is not packed, and stays as it is
    assert "14 weights are packed (fp8); they are unpacked on the way" in plan.notes


@pytest.mark.parametrize(("case", "type"), EXACT.items())
def test_a_grid_that_gguf_has_passes_without_rounding(case: str, type: str, plain: Path, tmp_path: Path) -> None:
    folder, dequantized = write(case, plain, tmp_path)
    plan = plan_conversion(folder)
    assert (
        f"14 tensors stay in {type}, the grid of the checkpoint: their values are exact, not rounded again"
        in plan.notes
    )
    assert plan.file_type.name == ("MXFP4_MOE" if type == "MXFP4" else type)
    wanted = {tensor.name: tensor for tensor in plan_conversion(dequantized, "f32").model.tensors}
    for tensor in plan.model.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            assert tensor.type.name == type
            values = decode(tensor.data(), tensor.type)
            np.testing.assert_array_equal(values, wanted[tensor.name].data().view(np.float32), err_msg=tensor.name)


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    """Blocks and scales equal transformers' dequantization, which gives the transposed stack."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(2)
    blocks = torch.randint(0, 256, (3, 40, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 130, (3, 40, 2), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "mxfp4"}}')
    tensor = open_checkpoint(tmp_path, GGMLType.BF16).tensor(f"{name}_blocks")
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    assert (tensor.name, tensor.type.name, tensor.shape) == (f"{name}_blocks", "MXFP4", (3, 40, 64))
    values = decode(tensor.data(), tensor.type).reshape(3, 40, 64)
    np.testing.assert_array_equal(values, expected.transpose(0, 2, 1))


def change(folder: Path, name: str, function: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    changed = function(tensors.pop(name))
    save_file(tensors if changed is None else {**tensors, name: changed.contiguous()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("case", "part", "function", "message"),
    [
        ("fp8-block", "weight_scale_inv", lambda t: None, r"weight: is packed, but its part .*weight_scale_inv is"),
        ("fp8-block", "weight_scale_inv", lambda t: t[:1, :3], r"weight_scale_inv: shape \(1, 3\), wanted one scale, "),
        ("fp8-block", "weight_scale_inv", lambda t: t.int(), r"weight_scale_inv: type I32, wanted F32 or BF16 or"),
        (
            "fp8-block",
            "weight_scale_inv",
            lambda t: t * torch.nan,
            r"weight_scale_inv: row 0, column 0: found nan, wan",
        ),
        (
            "ct-mxfp4",
            "weight_scale",
            lambda t: t.fill_(255),
            r"weight_scale: row 0: found a scale that is NaN, wanted a",
        ),
        ("ct-mxfp4", "weight_scale", lambda t: t[:3], r"weight_scale: shape \(3, 4\), wanted \(192, 4\), as model"),
        (
            "ct-nvfp4",
            "weight_global_scale",
            lambda t: t * 0,
            r"weight_global_scale: found \[0\.0\], wanted one positive",
        ),
        (
            "ct-int4",
            "weight_shape",
            lambda t: t - 1,
            r"weight_packed: shape \(192, 16\), wanted 191 rows of 127 integers",
        ),
        ("ct-int4", "weight_scale", lambda t: t[:, :3], r"weight_scale: shape \(192, 3\), wanted 192 rows of scales"),
        ("ct-int8", "weight_scale", lambda t: None, r"weight: is packed, but its part .*weight_scale is missing"),
        ("gptq-4", "qzeros", lambda t: None, r"qweight: is packed, but its part .*qzeros is missing; is a shard"),
        ("gptq-4", "scales", lambda t: t * torch.inf, r"scales: row 0, column 0: found inf, wanted a finite scale"),
        ("gptq-4", "scales", lambda t: t[:, 1:], r"scales: shape \(4, 191\), wanted \(4, 192\), as model\.layers\.1"),
        ("gptq-4", "g_idx", lambda t: t + 1, r"g_idx: found 4, wanted groups from 0 to 3"),
        ("gptq-4", "g_idx", lambda t: t[1:], r"qweight: shape \(16, 192\), wanted 2 or 3 or 4 or 8 bits for each of"),
        ("awq", "qweight", lambda t: t.reshape(-1), r"qweight: shape \(3072,\), wanted a matrix"),
        ("awq", "scales", lambda t: t.double(), r"scales: type F64, wanted F16 or BF16 or F32"),
        ("bitnet", "weight_scale", lambda t: t * 0, r"weight_scale: found \[0\.0\], wanted one scale other than 0"),
        ("bitnet", "weight", lambda t: t.fill_(255), r"weight: row 0: found the code 3, wanted 0 to 2"),
        ("fp8-block", "weight", lambda t: t.fill_(torch.nan), r"weight: row 0 holds NaN or infinity; the source"),
    ],
)
def test_parts_that_do_not_fit(
    case: str, part: str, function: Callable[[torch.Tensor], Any], message: str, plain: Path, tmp_path: Path
) -> None:
    folder, _ = write(case, plain, tmp_path)
    change(folder, f"model.layers.1.mlp.up_proj.{part}", function)
    with pytest.raises(InputError, match=rf"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.{message}"):
        convert(folder, tmp_path / "made.gguf", "q8_0")
    assert not (tmp_path / "made.gguf").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "exl2"}, r"quantization_config\.quant_method: found 'exl2'; this version reads fp8, .*use"),
        ({}, r"config\.json: quantization_config\.quant_method: missing, wanted one of fp8"),
        (gptq(5, 32), r"quantization_config\.bits: found 5, wanted 2 or 3 or 4 or 8; this version reads no other"),
        (gptq(4, 0), r"quantization_config\.group_size: found 0, wanted -1 or a positive integer"),
        (gptq(4, 32, checkpoint_format="marlin"), r"checkpoint_format: found 'marlin', wanted gptq or gptq_v2"),
        ({**AWQ, "bits": 3}, r"quantization_config\.bits: found 3, wanted 4"),
        ({**AWQ, "version": "gemv"}, r"quantization_config\.version: found 'gemv', wanted gemm"),
        (compressed(num_bits=16), r"config_groups\.group_0\.weights\.num_bits: found 16, wanted 1 or 2 or"),
        ({"quant_method": "compressed-tensors"}, r"quantization_config\.config_groups: missing, wanted an object of"),
        (
            {**compressed(num_bits=4), "sparsity_config": {"format": "sparse-24-bitmask"}},
            r"quantization_config\.sparsity_config\.format: found 'sparse-24-bitmask', wanted dense",
        ),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, r"quant_algo: found 'W4A8_AWQ', wanted fp8 or nvfp4"),
        ({"quant_method": "bitnet", "quantization_mode": "online"}, r"quantization_mode: found 'online', wanted offl"),
        ({**FP8, "weight_block_size": [0, 4]}, r"weight_block_size: found \[0, 4\], wanted two positive integers"),
    ],
)
def test_settings_that_are_not_known(settings: dict[str, Any], message: str, plain: Path, tmp_path: Path) -> None:
    folder, _ = write("fp8-block", plain, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    settings = settings or {"bits": 4}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(InputError, match=message):
        plan_conversion(folder)


@pytest.mark.parametrize("case", ["nf4", "fp4", "nf4-nested", "fp4-nested", "int8"])
def test_bitsandbytes(case: str, golden_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Equal to the library's own dequantization, which tests/golden/packed/make_bitsandbytes.py stored."""
    golden = load_file(golden_file("packed/bitsandbytes.safetensors"))
    parts = {name: part for name, part in golden.items() if name.startswith(f"{case}.")}
    expected = parts.pop(f"{case}.expected").numpy()
    save_file(parts, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.files) == [f"{case}.weight"]
    tensor = checkpoint.tensor(f"{case}.weight")
    assert tensor.shape == expected.shape
    for start, stop in ((0, tensor.rows), (0, 1), (7, 20), (23, 24), (5, 5)):
        np.testing.assert_array_equal(tensor.read(start, stop).view(np.float32), expected[start:stop])


def test_model_optimizer_states_its_method_in_a_file_of_its_own(plain: Path, tmp_path: Path) -> None:
    folder, dequantized = write("modelopt-nvfp4", plain, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (folder / "hf_quant_config.json").write_text(json.dumps(stated))
    wanted = plan_conversion(dequantized, "q8_0").model.tensors
    for tensor, expected in zip(plan_conversion(folder, "q8_0").model.tensors, wanted, strict=True):
        np.testing.assert_array_equal(tensor.data(), expected.data(), err_msg=tensor.name)


def test_parts_in_another_shard(plain: Path, tmp_path: Path) -> None:
    """Scales may lie in another file than codes; both are read, hashed and watched."""
    folder, dequantized = write("fp8-block", plain, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: "scales.safetensors" if "scale" in name else "codes.safetensors" for name in tensors}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    checkpoint = open_checkpoint(folder)
    assert [path.name for path in checkpoint.weights] == ["codes.safetensors", "scales.safetensors"]
    name = "model.layers.1.mlp.down_proj.weight"
    expected = load_file(dequantized / "model.safetensors")[name].numpy()
    np.testing.assert_array_equal(checkpoint.tensor(name).data().view(np.float32), expected)
    scales = folder / "scales.safetensors"
    scales.write_bytes(scales.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"scales\.safetensors"):
        checkpoint.check_unchanged()


def test_bin_files(plain: Path, tmp_path: Path) -> None:
    folder, dequantized = write("gptq-4", plain, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    name = "model.layers.0.self_attn.o_proj.weight"
    expected = load_file(dequantized / "model.safetensors")[name].numpy()
    np.testing.assert_array_equal(open_checkpoint(folder).tensor(name).data().view(np.float32), expected)


@pytest.mark.parametrize("executor", ["reference", "cpu"])
@pytest.mark.parametrize("case", ["fp8-block", "gptq-4-symmetric", "ct-mxfp4"])
def test_logits(case: str, executor: str, plain: Path, tmp_path: Path) -> None:
    """The converted model's logits are transformers' of the dequantized checkpoint, but for the order of sums."""
    import transformers

    from lltool.engine.model import load_model

    folder, dequantized = write(case, plain, tmp_path)
    tokens = [1, 17, 300, 42, 42, 7, 111, 250]
    model = transformers.AutoModelForCausalLM.from_pretrained(dequantized, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    with load_model(convert(folder, tmp_path / "made.gguf"), executor=executor, precision="f32") as made:
        logits = made.forward([(made.new_sequence(), np.array(tokens), "all")]).all()
    assert np.abs(logits - expected).max() < 1e-4 * np.ptp(expected)


@pytest.mark.parametrize(
    ("case", "part", "function", "message"),
    [
        (
            "nf4",
            "weight.absmax",
            lambda t: None,
            r"nf4\.weight: is packed, but its part nf4\.weight\.absmax is missing",
        ),
        (
            "nf4",
            "weight.absmax",
            lambda t: t[:3].clone(),
            r"nf4\.weight\.absmax: shape \(3,\), wanted \(15,\), as nf4\.",
        ),
        ("nf4", "weight", lambda t: t[:9].clone(), r"nf4\.weight: 9 bytes, wanted 480 for \(24, 40\) codes"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", lambda t: t[:9].clone(), r"__nf4: is not JSON: "),
        ("nf4", "weight.quant_map", lambda t: t * torch.nan, r"nf4\.weight\.quant_map: row 0, column 0: found nan"),
        ("int8", "weight_format", lambda t: t + 2, r"int8\.weight_format: found \[2\], wanted 0, for rows; load and"),
    ],
)
def test_parts_of_bitsandbytes_that_do_not_fit(
    case: str,
    part: str,
    function: Callable[[torch.Tensor], Any],
    message: str,
    golden_file: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    golden = load_file(golden_file("packed/bitsandbytes.safetensors"))
    parts = {name: values for name, values in golden.items() if name.startswith(f"{case}.") and "expected" not in name}
    save_file(parts, tmp_path / "model.safetensors")
    change(tmp_path, f"{case}.{part}", function)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path).tensor(f"{case}.weight").data()
