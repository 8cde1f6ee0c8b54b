"""Tiny checkpoints of models that transformers does not have, made from models that compute the same.

A derived checkpoint has the other model's tensors under its own names and in its own order, as its code on the Hub
defines them, so that the logits of the original are the oracle.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.rwkv7_checkpoint import make_rwkv7
from tests.tiny_checkpoints import FAMILIES, make_checkpoint

Tensors = dict[str, NDArray[np.float32]]
Change = Callable[[dict[str, Any], Tensors], tuple[dict[str, Any], Tensors]]


def rename(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """Replaces parts of names, in order."""
    renamed = {}
    for name, values in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = values
    return renamed


def fuse(tensors: Tensors, layer: str, names: tuple[str, ...], target: str, kind: str = "weight") -> None:
    tensors[f"{layer}{target}.{kind}"] = np.concatenate([tensors.pop(f"{layer}{name}.{kind}") for name in names])


def layers(tensors: Tensors) -> list[str]:
    return sorted({name.partition("self_attn.")[0] for name in tensors if "self_attn." in name})


def internlm2(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Each key head's queries, its key and its value follow one another in wqkv."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    dim, width = config["hidden_size"] // heads, config["hidden_size"]
    for layer in layers(tensors):
        q, k, v = (tensors.pop(f"{layer}self_attn.{x}_proj.weight") for x in "qkv")
        parts = [x.reshape(groups, -1, dim, width) for x in (q, k, v)]
        tensors[f"{layer}attention.wqkv.weight"] = np.concatenate(parts, axis=1).reshape(-1, width)
    names = {
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "embed_tokens": "tok_embeddings",
        "lm_head": "output",
    }
    keys = {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    return {**without(config, "attention_bias", "mlp_bias"), **keys}, rename(tensors, names)


def internlm3(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    keys = {"architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3", "bias": False, "qkv_bias": False}
    return {**without(config, "attention_bias", "mlp_bias"), **keys}, tensors


def baichuan(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    for layer in layers(tensors):
        fuse(tensors, layer, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.W_pack")
    dropped = ("attention_bias", "mlp_bias", "num_key_value_heads", "head_dim", "rope_parameters")
    return {
        **without(config, *dropped),
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
    }, tensors


def baichuan2(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Its code divides the rows of the output matrix by their lengths; the original has rows of length 1."""
    lengths = 0.5 + np.random.default_rng(1).random((config["vocab_size"], 1))
    tensors["lm_head.weight"] = (tensors["lm_head.weight"] * lengths).astype(np.float32)
    config, tensors = baichuan(config, tensors)
    return {**config, "z_loss_weight": 0, "model_max_length": config.pop("max_position_embeddings")}, tensors


def minicpm(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    keys = {
        "architectures": ["MiniCPMForCausalLM"],
        "model_type": "minicpm",
        "scale_emb": config.pop("embedding_multiplier"),
        "scale_depth": config.pop("residual_multiplier") * config["num_hidden_layers"] ** 0.5,
        "dim_model_base": int(config["hidden_size"] / config.pop("logits_scaling")),
    }
    return {**without(config, "attention_multiplier", "mlp_bias"), **keys}, tensors


def qwen(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    for layer in layers(tensors):
        for kind in ("weight", "bias"):
            fuse(tensors, layer, tuple(f"self_attn.{x}_proj" for x in "qkv"), "attn.c_attn", kind)
    names = {
        "model.embed_tokens": "transformer.wte",
        "model.layers.": "transformer.h.",
        "model.norm": "transformer.ln_f",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.gate_proj": "mlp.w2",
        "mlp.up_proj": "mlp.w1",
        "mlp.down_proj": "mlp.c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
    }
    keys = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": config["hidden_size"],
        "intermediate_size": 2 * config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_hidden_layers": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "seq_length": config["max_position_embeddings"],
        "layer_norm_epsilon": config["rms_norm_eps"],
        "rotary_emb_base": 10000,
        "kv_channels": 16,
        "no_bias": True,
        "tie_word_embeddings": False,
        "use_logn_attn": False,
        "use_dynamic_ntk": False,
    }
    return keys, rename(tensors, names)


def exaone(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    names = {
        "model.embed_tokens": "transformer.wte",
        "model.layers.": "transformer.h.",
        "model.norm": "transformer.ln_f",
        "self_attn.o_proj": "self_attn.out_proj",
        "self_attn": "attn.attention",
        "mlp.gate_proj": "mlp.c_fc_0",
        "mlp.up_proj": "mlp.c_fc_1",
        "mlp.down_proj": "mlp.c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
    }
    keys = {
        "architectures": ["ExaoneForCausalLM"],
        "model_type": "exaone",
        "num_layers": config["num_hidden_layers"],
        "layer_norm_epsilon": config["rms_norm_eps"],
        "activation_function": "silu",
    }
    return {**without(config, "num_hidden_layers", "rms_norm_eps", "hidden_act"), **keys}, rename(tensors, names)


def chatglm(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    for layer in layers(tensors):
        for kind in ("weight", "bias"):
            fuse(tensors, layer, tuple(f"self_attn.{x}_proj" for x in "qkv"), "self_attention.query_key_value", kind)
    names = {
        "model.embed_tokens": "transformer.embedding.word_embeddings",
        "model.layers.": "transformer.encoder.layers.",
        "model.norm": "transformer.encoder.final_layernorm",
        "lm_head": "transformer.output_layer",
        "self_attn.o_proj": "self_attention.dense",
        "mlp.gate_up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    keys = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": config["intermediate_size"],
        "hidden_size": config["hidden_size"],
        "kv_channels": config["head_dim"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "multi_query_attention": True,
        "multi_query_group_num": config["num_key_value_heads"],
        "num_attention_heads": config["num_attention_heads"],
        "num_layers": config["num_hidden_layers"],
        "original_rope": True,
        "padded_vocab_size": config["vocab_size"],
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": config["max_position_embeddings"],
        "tie_word_embeddings": False,
    }
    return keys, rename(tensors, names)


def nemotron_h(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As published: the layers are letters, and a model without experts has no keys about them."""
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-"}
    pattern = "".join(letters[kind] for kind in config.pop("layers_block_type"))
    of_experts = [key for key in config if "expert" in key or "moe" in key or key.startswith("mtp")]
    return {**without(config, *of_experts), "hybrid_override_pattern": pattern}, tensors


def kimi_linear(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As published: sizes in an object of their own, and MLPs of layers without experts under another name."""
    kinds = config.pop("layer_types")
    numbers = {kind: [n for n, found in enumerate(kinds, 1) if found == kind] for kind in kinds}
    sizes = {
        "full_attn_layers": numbers["full_attention"],
        "kda_layers": numbers["linear_attention"],
        "head_dim": config.pop("linear_head_dim"),
        "num_heads": config.pop("linear_num_heads"),
        "short_conv_kernel_size": config.pop("linear_conv_kernel_dim"),
    }
    keys = {"linear_attn_config": sizes, "first_k_dense_replace": config.pop("mlp_layer_types").count("dense")}
    names = {f"layers.0.block_sparse_moe.{part}_proj": f"layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")}
    return {**config, **keys, "moe_router_activation_func": "sigmoid"}, rename(tensors, names)


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


# family: the family that it is made from, config beyond that family's, the change
DERIVED: dict[str, tuple[str, dict[str, Any], Change]] = {
    "internlm2": ("llama", {"hidden_size": 96, "num_attention_heads": 6}, internlm2),
    "internlm3": ("llama", {}, internlm3),
    "baichuan": ("llama", {"num_key_value_heads": 4}, baichuan),
    "baichuan2": ("llama", {"num_key_value_heads": 4}, baichuan2),
    "minicpm": ("granite", {"attention_multiplier": 0.25}, minicpm),
    "qwen": ("qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": False}, qwen),
    "chatglm": ("glm", {}, chatglm),
    "kimi-linear-published": ("kimi-linear", {}, kimi_linear),
    "nemotron-h-published": ("nemotron-h", {}, nemotron_h),
    "exaone": ("llama3-rope", {"tie_word_embeddings": False}, exaone),
}


def make_derived(family: str, folder: Path, **overrides: Any) -> Path:
    """Writes a checkpoint of `family`, a key of DERIVED, and returns the folder of the one that it is made from."""
    from safetensors.numpy import load_file, save_file

    base, settings, change = DERIVED[family]
    original = make_checkpoint(base, folder / "original", **(settings | overrides))
    tensors = load_file(original / "model.safetensors")
    if family == "baichuan2":
        tensors["lm_head.weight"] /= np.linalg.norm(tensors["lm_head.weight"], axis=1, keepdims=True)
        save_file(tensors, original / "model.safetensors", {"format": "pt"})
    config = json.loads((original / "config.json").read_text())
    values, renamed = change(config, tensors)
    (folder / "config.json").write_text(json.dumps(values))
    save_file({name: np.ascontiguousarray(x) for name, x in renamed.items()}, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        if (original / name).exists():
            shutil.copy(original / name, folder / name)
    return original


def make_with_original(family: str, folder: Path, **overrides: Any) -> Path:
    """Writes a checkpoint of a family of either table, or of RWKV 7; returns the folder that the oracle loads."""
    if family == "rwkv7":
        return make_rwkv7(folder, **overrides)
    return (
        make_checkpoint(family, folder, **overrides)
        if family in FAMILIES
        else make_derived(family, folder, **overrides)
    )
