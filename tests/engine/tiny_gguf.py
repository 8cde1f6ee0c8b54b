"""Tiny random models made without a checkpoint, whose metadata and tensors a test can bend."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType, array, f32, string, u32
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant.convert.sentencepiece_model import TokenType

VOCAB, WIDTH, FF, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 96, 32, 64, 4, 2, 16, 3


def metadata(architecture: str = "gemma3", **changes: Value | None) -> dict[str, Value]:
    """Keys of a model with a window of 64 on two of three layers; `changes` (dots as __) replace keys, None removes."""
    values = {
        "context_length": u32(512),
        "block_count": u32(LAYERS),
        "embedding_length": u32(WIDTH),
        "feed_forward_length": u32(FF),
        "attention.head_count": u32(HEADS),
        "attention.head_count_kv": u32(KV_HEADS),
        "attention.key_length": u32(HEAD_DIM),
        "attention.value_length": u32(HEAD_DIM),
        "attention.layer_norm_rms_epsilon": f32(1e-5),
        "attention.sliding_window": u32(64),
        "attention.sliding_window_pattern": Value(ValueType.ARRAY, np.array([True, False, True]), ValueType.BOOL),
    }
    for key, value in changes.items():
        values[key.replace("__", ".")] = value
    keys = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": string(architecture), **keys}


def vocabulary() -> dict[str, Value]:
    """Keys of a byte-level tokenizer with a token for each of the first 94 bytes' letters, and two control tokens."""
    letters = [chr(33 + i) for i in range(VOCAB - 2)]
    types = np.array([TokenType.NORMAL] * len(letters) + [TokenType.CONTROL] * 2, np.int32)
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, [*letters, "<s>", "</s>"]),
        "tokenizer.ggml.token_type": array(ValueType.INT32, types),
        "tokenizer.ggml.merges": array(ValueType.STRING, []),
        "tokenizer.ggml.bos_token_id": u32(VOCAB - 2),
        "tokenizer.ggml.eos_token_id": u32(VOCAB - 1),
    }


def tensors(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights of a Gemma 3 model (the widest set of tensors), tied."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (WIDTH,),
            f"blk.{layer}.attn_q.weight": (HEADS * HEAD_DIM, WIDTH),
            f"blk.{layer}.attn_k.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"blk.{layer}.attn_v.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"blk.{layer}.attn_q_norm.weight": (HEAD_DIM,),
            f"blk.{layer}.attn_k_norm.weight": (HEAD_DIM,),
            f"blk.{layer}.attn_output.weight": (WIDTH, HEADS * HEAD_DIM),
            f"blk.{layer}.post_attention_norm.weight": (WIDTH,),
            f"blk.{layer}.ffn_norm.weight": (WIDTH,),
            f"blk.{layer}.ffn_gate.weight": (FF, WIDTH),
            f"blk.{layer}.ffn_up.weight": (FF, WIDTH),
            f"blk.{layer}.ffn_down.weight": (WIDTH, FF),
            f"blk.{layer}.post_ffw_norm.weight": (WIDTH,),
        }
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(size=shape) / shape[-1] ** 0.5 if len(shape) == 2 else 1 + 0.2 * random.normal(size=shape))
        .astype(np.float32)
        for name, shape in shapes.items()
    }  # fmt: skip


def write_model(path: Path, keys: Mapping[str, Value], arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Writes float32 and int32 arrays as they are."""
    write_gguf(path, Model(keys, [_tensor(name, values) for name, values in arrays.items()]))
    return path


def _tensor(name: str, values: NDArray[Any]) -> Tensor:
    type = {np.dtype(np.float32): GGMLType.F32, np.dtype(np.int32): GGMLType.I32}[values.dtype]
    rows = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.shape[-1] * 4)
    return Tensor(name, type, values.shape, lambda start, stop: rows[start:stop])
