"""Random LoRA adapters for the tiny models of tiny_gguf.py, and the weights of these models with adapters merged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, f32, string
from lltool.gguf.source import Model
from lltool.gguf.writer import write_gguf
from lltool.quant.convert.low_rank import float_tensor
from lltool.quant.retype import retype_tensor
from tests.engine import tiny_gguf

Arrays = dict[str, NDArray[np.float32]]
EMBEDDING = "token_embd.weight"
LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
ALL = tuple(f"blk.{layer}.{name}.weight" for layer in range(tiny_gguf.LAYERS) for name in LINEARS)


def factors(names: Sequence[str] = ALL, rank: int = 4, seed: int = 1) -> Arrays:
    """`NAME.lora_a` and `NAME.lora_b` of these matrices, as a file has them."""
    random, bases, made = np.random.default_rng(seed), tiny_gguf.tensors(), Arrays()
    for name in names:
        rows, columns = bases[name].shape
        a, b = random.normal(size=(rank, columns)), random.normal(size=(rows, rank))
        if name == EMBEDDING:
            a, b = b, a.T
        made |= {f"{name}.lora_a": np.float32(a * 0.2), f"{name}.lora_b": np.float32(b * 0.2)}
    return made


def metadata(alpha: float = 8.0, **changes: Value | None) -> dict[str, Value]:
    keys = {
        "general.architecture": string("gemma3"),
        "general.type": string("adapter"),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": f32(alpha),
    }
    return {key: value for key, value in {**keys, **changes}.items() if value is not None}


def write_adapter(path: Path, arrays: Mapping[str, NDArray[Any]], alpha: float = 8.0) -> Path:
    return tiny_gguf.write_model(path, metadata(alpha), arrays)


def write_as(path: Path, arrays: Arrays, type: GGMLType, alpha: float = 8.0) -> Path:
    """An adapter whose factors have this type."""
    tensors = [retype_tensor(float_tensor(name, values), type) for name, values in arrays.items()]
    write_gguf(path, Model(metadata(alpha), tensors))
    return path


def merged(*adapters: tuple[Arrays, float]) -> Arrays:
    """The model's weights with adapters of these scales, alpha included."""
    weights = tiny_gguf.tensors()
    for arrays, scale in adapters:
        for name in {name.rpartition(".")[0] for name in arrays}:
            a, b = (arrays[f"{name}.lora_{part}"].astype(np.float64) for part in "ab")
            change = a @ b.T if name == EMBEDDING else b @ a
            weights[name] = np.float32(weights[name] + scale / b.shape[1] * change)
    return weights
