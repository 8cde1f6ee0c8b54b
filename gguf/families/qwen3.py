"""Qwen 3: Qwen 2 without the biases (mostly), with norms on the heads of q and k, whose size is its own."""

from typing import Any

from lltool.gguf.families import llama, qwen2
from lltool.gguf.families.config import Config
from lltool.gguf.families.family import Family, Keys, Row
from lltool.gguf.families.stored import Stored
from lltool.gguf.metadata import u32


def _insert_norms(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    norms = (
        Row("blk.{}.attn_q_norm.weight", "model.layers.{}.self_attn.q_norm.weight"),
        Row("blk.{}.attn_k_norm.weight", "model.layers.{}.self_attn.k_norm.weight"),
    )
    place = next(index for index, row in enumerate(rows) if row.gguf == "blk.{}.attn_output.weight")
    return rows[:place] + norms + rows[place:]


BIASES = ("blk.{}.attn_q.bias", "blk.{}.attn_k.bias", "blk.{}.attn_v.bias", "blk.{}.attn_output.bias")
ROWS = _insert_norms(
    tuple(
        Row(row.gguf, row.checkpoint, optional=row.optional)
        for row in llama.ROWS
        if row.gguf.endswith("weight") or row.gguf in BIASES
    )
)


def describe(config: Config) -> Keys:
    config.expect("attention_bias", True, False)
    keys = qwen2.describe(config)
    head_dim = u32(config.values["head_dim"])
    return keys | {"attention.key_length": head_dim, "attention.value_length": head_dim}


def restore(stored: Stored) -> dict[str, Any]:
    config = qwen2.restore(stored) | {"attention_bias": "blk.0.attn_q.bias" in stored.names}
    return config | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


QWEN3 = Family(
    architecture="qwen3",
    models=("Qwen3ForCausalLM",),
    rows=ROWS,
    defaults={**qwen2.QWEN2.defaults, "head_dim": 128},
    describe=describe,
    restore=restore,
)
