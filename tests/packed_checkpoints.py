"""Tiny checkpoints whose matrices are packed as quantizing libraries do, each with the same model dequantized.

A packing is a function from a matrix to the parts that are stored and the matrix that they stand for. Where a library
that runs here knows the packing, it makes the parts or dequantizes them; its name is in the function's docstring.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Parts = dict[str, torch.Tensor]
"""Stored tensors by what follows the module's name, as `weight_scale`."""

Pack = Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]


def write_packed(
    plain: Path, folder: Path, pack: Pack, quantization: dict[str, Any], keep: tuple[str, ...] = ()
) -> tuple[Path, Path]:
    """Packs the layers' matrices of the checkpoint `plain`, but those whose names contain one of `keep`.

    Returns the folder of the packed checkpoint and that of the dequantized one, in float32.
    """
    packed, dequantized = folder / "packed", folder / "dequantized"
    for target in (packed, dequantized):
        shutil.copytree(plain, target)
    stored: Parts = {}
    values: Parts = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if tensor.ndim < 2 or ".layers." not in name or any(part in name for part in keep):
            stored[name] = values[name] = tensor
            continue
        parts, values[name] = pack(tensor)
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, packed / "model.safetensors")
    save_file({name: tensor.float().contiguous() for name, tensor in values.items()}, dequantized / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return packed, dequantized


def fp8_blocks(
    rows: int | None, columns: int | None, scales: torch.dtype = torch.float32, name: str = "weight_scale_inv"
) -> Pack:
    """Transformers' own fp8: each block of `rows` × `columns`, or the whole of an axis, has a scale."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        sizes = [rows or weight.shape[0], columns or weight.shape[1]]
        quantizer = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=sizes, scale_fmt="float"))
        made = Fp8Quantize(quantizer)._quantize_one("x.weight", weight)
        codes, factors = made["x.weight"], made["x.weight_scale_inv"].to(scales)
        values = Fp8Dequantize(quantizer)._dequantize_one(codes, factors.float(), torch.float32)
        return {"weight": codes, name: factors}, values

    return pack


def fp8_tensor(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """One scale without an axis, as static fp8 of compressed-tensors and modelopt, beside that of the activations."""
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale, "input_scale": torch.ones(())}, codes.float() * scale


def fp8_ragged(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """Blocks of 48 × 40, of which the last ones are cut off, in e5m2."""
    rows, columns = (-(-size // block) for size, block in zip(weight.shape, (48, 40), strict=True))
    scales = torch.rand(rows, columns) + 0.5
    codes = weight.to(torch.float8_e5m2)
    grid = scales.repeat_interleave(48, 0)[: weight.shape[0]].repeat_interleave(40, 1)[:, : weight.shape[1]]
    return {"weight": codes, "weight_scale_inv": scales}, codes.float() * grid


def compressed(compressor: str, scale_type: torch.dtype = torch.bfloat16, **arguments: Any) -> Pack:
    """compressed-tensors: its own `compress` and `decompress`; `arguments` are those of its QuantizationArgs."""
    from compressed_tensors import compressors
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    cls = getattr(compressors, compressor)

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        groups = weight.reshape(weight.shape[0], -1, args.group_size or weight.shape[1])
        state = {"weight": weight}
        if compressor == "NVFP4PackedCompressor":
            state["weight_global_scale"] = (448 * 6 / weight.abs().max()).reshape(1)
            scale = groups.abs().amax(-1) / 6 * state["weight_global_scale"]
            state["weight_scale"] = scale.to(torch.float8_e4m3fn).float()
        elif compressor == "MXFP4PackedCompressor":
            state["weight_scale"] = 2 ** torch.floor(torch.log2(groups.abs().amax(-1) / 4))
        else:
            low, high = groups.amin(-1), groups.amax(-1)
            scale, zero = calculate_qparams(low, high, args)
            state |= {"weight_scale": scale.to(scale_type).float(), "weight_zero_point": zero.to(torch.int8)}
        parts = cls.compress(state, scheme)
        values = cls.decompress(dict(parts), scheme)["weight"].float()
        if compressor == "NVFP4PackedCompressor":  # its decompress rounds to bfloat16
            codes = unpack_fp4_from_uint8(parts["weight_packed"], *weight.shape).float()
            scales, whole = parts["weight_scale"].float(), parts["weight_global_scale"]
            values = dequantize(codes, scales, args=args, global_scale=whole, dtype=torch.float32)
        if (
            scale_type != torch.float32
            and "weight_global_scale" not in parts
            and parts["weight_scale"].dtype.itemsize > 1
        ):
            parts["weight_scale"] = parts["weight_scale"].to(scale_type)
        return parts, values

    return pack


def _pack_column(codes: list[int], bits: int) -> list[int]:
    """Codes in a row as one long number, the first one lowest, in words of 32 bits with a sign."""
    stream = sum(code << (bits * place) for place, code in enumerate(codes))
    words = [stream >> (32 * n) & 0xFFFFFFFF for n in range(-(-len(codes) * bits // 32))]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def _pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return torch.tensor([_pack_column(row, bits) for row in codes.tolist()], dtype=torch.int32)


def gptq(
    bits: int, group: int, *, symmetric: bool = False, act_order: bool = False, version: int = 1, named: bool = True
) -> Pack:
    """GPTQ, written out from AutoGPTQ's format: the library needs a GPU. `named` stores g_idx."""

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        outputs, inputs = weight.shape
        size = inputs if group == -1 else group
        order = torch.arange(inputs) // size
        if act_order:
            order = order[torch.randperm(inputs)]
        groups = -(-inputs // size)
        codes = torch.randint(0, 1 << bits, (outputs, inputs))
        scales = (torch.rand(groups, outputs) * 0.02 + 0.001).half()
        zeros = torch.randint(0, 1 << bits, (groups, outputs))
        if symmetric:
            zeros = torch.full_like(zeros, 1 << (bits - 1))
        stored = (zeros - 1) % (1 << bits) if version == 1 else zeros
        parts = {
            "qweight": _pack_rows(codes, bits).T,
            "qzeros": _pack_rows(stored, bits),
            "scales": scales,
            "g_idx": order.int(),
        }
        if not named:
            del parts["g_idx"]
        return parts, scales.float().T[:, order] * (codes - zeros.T[:, order])

    return pack


def awq(group: int) -> Pack:
    """AWQ's gemm, written out from AutoAWQ's format: the library needs a GPU."""

    def words(codes: torch.Tensor) -> torch.Tensor:
        eights = codes.reshape(len(codes), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return _pack_rows(eights.reshape(codes.shape), 4)

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        outputs, inputs = weight.shape
        codes = torch.randint(0, 16, (inputs, outputs))
        zeros = torch.randint(0, 16, (inputs // group, outputs))
        scales = (torch.rand(inputs // group, outputs) * 0.02 + 0.001).half()
        values = scales.float().repeat_interleave(group, 0) * (codes - zeros.repeat_interleave(group, 0))
        return {"qweight": words(codes), "qzeros": words(zeros), "scales": scales}, values.T

    return pack


def nvfp4_modelopt(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """NVFP4 as TensorRT's model optimizer stores it: the codes of compressed-tensors, and a scale that multiplies."""
    arguments = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    parts, _ = compressed("NVFP4PackedCompressor", **arguments)(weight)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = parts["weight_packed"].int()
    values = table[torch.stack([codes & 15, codes >> 4], -1).reshape(weight.shape)]
    whole = 1 / parts["weight_global_scale"]
    values = values * (parts["weight_scale"].float() * whole).repeat_interleave(16, 1)
    stored = {"weight": codes.to(torch.uint8), "weight_scale": parts["weight_scale"], "weight_scale_2": whole.squeeze()}
    return stored, values


def bitnet(divides: bool, scales: torch.dtype = torch.bfloat16) -> Pack:
    """BitNet as transformers packs it; its `unpack_weights`, without torch.compile, gives the codes."""
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        packed = pack_weights(torch.randint(-1, 2, weight.shape, dtype=torch.int8))
        scale = (torch.rand(1) + 0.5).to(scales)
        codes = unpack_weights._torchdynamo_orig_callable(packed, torch.float32)
        values = codes * (1 / scale.float() if divides else scale.float())
        return {"weight": packed, "weight_scale": scale}, values

    return pack
