"""Families with experts: every tensor against PyPI's gguf and numpy, both forms of checkpoints, and damaged ones."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.convert.conversion import convert, plan_conversion
from tests.tiny_checkpoints import LINEAR, MIXTURES, make_checkpoint

Arrays = dict[str, NDArray[np.float32]]
SINGLE = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


def edited(folder: Path, copy: Path, change: Callable[[Arrays], Arrays], **config: Any) -> Path:
    """A checkpoint with other tensors, and other values in its config.json."""
    copy.mkdir()
    for file in folder.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            (copy / file.name).symlink_to(file)
    (copy / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    save_file(change(load_file(folder / "model.safetensors")), copy / "model.safetensors")
    return copy


def stacks_of(tensors: Arrays) -> Arrays:
    """The GGUF tensors of experts, by the definition of each form of checkpoint; the tensors are taken out."""
    singles: dict[str, dict[int, NDArray[np.float32]]] = {}
    stacks: Arrays = {}
    for name in list(tensors):
        layer = re.search(r"layers\.(\d+)\.", name)
        if layer is None or not ("experts." in name or "_linear" in name) or "shared_experts" in name:
            continue
        values, block = tensors.pop(name), f"blk.{layer[1]}.ffn_"
        single = re.search(r"experts\.(\d+)\.(\w+)\.weight", name)
        if single:
            singles.setdefault(f"{block}{SINGLE[single[2]]}_exps.weight", {})[int(single[1])] = values
            continue
        kind = "bias" if name.endswith("bias") else "weight"
        suffix, half = ("shexp" if "shared_mlp" in name else "exps"), values.shape[-2] // 2
        if "feed_forward" in name and "gate_up_proj" in name:  # Llama 4: halves, and inputs before outputs
            parts = [part.swapaxes(1, 2) for part in np.split(values, 2, axis=2)]
        elif "gate_up_proj" in name:  # gpt-oss: columns in turn, and inputs before outputs
            parts = [values[..., 0::2], values[..., 1::2]]
            parts = parts if kind == "bias" else [part.swapaxes(1, 2) for part in parts]
        elif "input_linear" in name:
            parts = [values[..., :half, :], values[..., half:, :]]
        else:
            stacks[f"{block}down_{suffix}.{kind}"] = values.swapaxes(1, 2) if name.endswith("down_proj") else values
            continue
        stacks |= {f"{block}{part}_{suffix}.{kind}": v for part, v in zip(("gate", "up"), parts, strict=True)}
    return stacks | {name: np.stack([of[i] for i in range(len(of))]) for name, of in singles.items()}


@pytest.mark.parametrize("family", [family for family in MIXTURES if family not in LINEAR])
def test_every_tensor(family: str, checkpoint: Callable[[str], Path]) -> None:
    """Stacks of experts as written out above; all others have the names that PyPI's gguf gives them."""
    model = plan_conversion(checkpoint(family)).model
    found = {tensor.name: tensor for tensor in model.tensors}
    others = load_file(checkpoint(family) / "model.safetensors")
    stacks = stacks_of(others)
    assert len(stacks) >= 2 * 3
    for name, values in stacks.items():
        tensor = found.pop(name)
        assert tensor.shape == values.shape
        np.testing.assert_array_equal(tensor.data().view(np.float32).reshape(values.shape), values, name)
    architecture = {name: key for key, name in MODEL_ARCH_NAMES.items()}[model.metadata["general.architecture"].data]
    names = get_tensor_name_map(architecture, 8)
    for name in [name for name in others if "kv_b_proj" in name]:  # a head's rows for its key, then those for its value
        config, values = json.loads((checkpoint(family) / "config.json").read_text()), others.pop(name)
        heads = values.reshape(config["num_attention_heads"], -1, values.shape[1])
        plain, block = config["qk_nope_head_dim"], f"blk.{name.split('.')[2]}.attn_"
        for part, wanted in (("k_b", heads[:, :plain].swapaxes(1, 2)), ("v_b", heads[:, plain:])):
            tensor = found.pop(f"{block}{part}.weight")
            np.testing.assert_array_equal(tensor.data().view(np.float32).reshape(tensor.shape), wanted, name)
    for name, values in others.items():
        stem, kind = name.rsplit(".", 1)
        correction = names.get_name(name.replace("_bias", "")) if "e_score" in name else None
        mapped = correction or names.get_name(name) or names.get_name(stem)
        assert mapped, name
        tensor = found.pop(f"{mapped}.{'bias' if kind.endswith('bias') else 'weight'}")
        assert tensor.shape == np.squeeze(values).shape, name
        # Rows may be in another order, for adjacent rotary pairs.
        assert sorted(tensor.data().view(np.float32).ravel()) == sorted(values.ravel()), name
    assert not found


KEYS: dict[str, dict[str, Any]] = {
    "mixtral": {
        "llama.expert_count": 4,
        "llama.expert_used_count": 2,
        "llama.feed_forward_length": 48,
        "llama.attention.sliding_window": 64,
    },
    "qwen2moe": {
        "qwen2moe.expert_count": 8,
        "qwen2moe.expert_used_count": 3,
        "qwen2moe.expert_feed_forward_length": 48,
        "qwen2moe.expert_shared_feed_forward_length": 40,
    },
    "qwen3next": {
        "qwen3next.expert_used_count": 3,
        "qwen3next.expert_shared_feed_forward_length": 40,
        "qwen3next.feed_forward_length": 128,
        "qwen3next.ssm.inner_size": 96,
        "qwen3next.ssm.group_count": 3,
        "qwen3next.rope.dimension_count": 8,
    },
    "qwen35moe": {
        "qwen35moe.expert_feed_forward_length": 48,
        "qwen35moe.full_attention_interval": 4,
        "qwen35moe.rope.dimension_sections": pytest.approx([11, 11, 10, 0]),
    },
    "qwen3moe": {"qwen3moe.expert_count": 8, "qwen3moe.expert_feed_forward_length": 48},
    "olmoe": {"olmoe.expert_count": 8, "olmoe.feed_forward_length": 48},
    "granitemoe": {
        "granitemoe.embedding_scale": 3.0,
        "granitemoe.residual_scale": pytest.approx(0.4),
        "granitemoe.attention.scale": pytest.approx(0.1),
        "granitemoe.logit_scale": 5.0,
        "granitemoe.expert_shared_feed_forward_length": 40,
    },
    "glm4moe": {
        "glm4moe.rope.dimension_count": 12,
        "glm4moe.leading_dense_block_count": 1,
        "glm4moe.expert_shared_count": 2,
        "glm4moe.expert_gating_func": 2,
        "glm4moe.expert_weights_scale": 1.5,
        "glm4moe.expert_weights_norm": True,
        "glm4moe.expert_group_count": 4,
        "glm4moe.expert_group_used_count": 2,
    },
    "dots1": {"dots1.expert_shared_count": 2, "dots1.expert_gating_func": 2},
    "deepseek2": {
        "deepseek2.attention.head_count_kv": 1,
        "deepseek2.attention.kv_lora_rank": 56,
        "deepseek2.attention.key_length": 64,
        "deepseek2.attention.value_length": 56,
        "deepseek2.attention.key_length_mla": 32,
        "deepseek2.attention.value_length_mla": 20,
        "deepseek2.rope.dimension_count": 8,
        "deepseek2.rope.scaling.type": "yarn",
        "deepseek2.rope.scaling.factor": 8.0,
        "deepseek2.rope.scaling.yarn_log_multiplier": pytest.approx(0.0707),
        "deepseek2.leading_dense_block_count": 1,
        "deepseek2.expert_gating_func": 1,
        "deepseek2.expert_shared_count": 2,
        "deepseek2.expert_weights_scale": 1.5,
    },
    "deepseek3": {
        "deepseek2.attention.q_lora_rank": 40,
        "deepseek2.expert_gating_func": 2,
        "deepseek2.expert_weights_norm": True,
        "deepseek2.expert_group_count": 4,
        "deepseek2.expert_group_used_count": 2,
    },
    "glm4-moe-lite": {
        "deepseek2.attention.q_lora_rank": 40,
        "deepseek2.leading_dense_block_count": 1,
        "deepseek2.expert_gating_func": 2,
        "deepseek2.expert_group_count": 4,
    },
    "phimoe": {
        "phimoe.expert_count": 6,
        "phimoe.expert_used_count": 2,
        "phimoe.attention.sliding_window": 64,
        "phimoe.rope.dimension_count": 16,
        "phimoe.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
    },
    "llama4": {
        "llama4.expert_count": 4,
        "llama4.expert_used_count": 1,
        "llama4.feed_forward_length": 96,
        "llama4.expert_feed_forward_length": 48,
        "llama4.interleave_moe_layer_step": 2,
        "llama4.attention.sliding_window": 70,
        "llama4.attention.temperature_scale": pytest.approx(0.3),
        "llama4.attention.temperature_length": 50,
    },
    "ernie4_5-moe": {
        "ernie4_5-moe.interleave_moe_layer_step": 2,
        "ernie4_5-moe.leading_dense_block_count": 1,
        "ernie4_5-moe.expert_count": 6,
        "ernie4_5-moe.expert_shared_feed_forward_length": 96,
    },
    "gpt-oss": {
        "gpt-oss.attention.sliding_window": 64,
        "gpt-oss.expert_feed_forward_length": 48,
        "gpt-oss.rope.scaling.type": "yarn",
        "gpt-oss.rope.scaling.factor": 8.0,
        "gpt-oss.rope.scaling.original_context_length": 64,
    },
}


@pytest.mark.parametrize("family", MIXTURES)
def test_keys(family: str, checkpoint: Callable[[str], Path]) -> None:
    conversion = plan_conversion(checkpoint(family))
    metadata = conversion.model.metadata
    assert {key: metadata[key].data for key in KEYS[family]} == KEYS[family]
    assert not [note for note in conversion.notes if "unknown keys" in note]


def merged(tensors: Arrays) -> Arrays:
    """Qwen's experts in stacks, gate before up, as transformers 5 holds them."""
    stacks = stacks_of(tensors)
    for name in sorted(stacks):
        layer = name.split(".")[1]
        if "up" in name:
            both = [stacks[name.replace("up", part)] for part in ("gate", "up")]
            tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = np.concatenate(both, axis=1)
        if "down" in name:
            tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = stacks[name]
    return tensors


@pytest.mark.parametrize("family", ["qwen3moe", "qwen2moe", "glm4moe"])
def test_stacks_give_the_same_as_single_experts(family: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    single = plan_conversion(checkpoint(family)).model.tensors
    stacked = plan_conversion(edited(checkpoint(family), tmp_path / "stacked", merged)).model.tensors
    assert {t.name: (t.type, t.shape) for t in stacked} == {t.name: (t.type, t.shape) for t in single}
    values = {tensor.name: tensor.data() for tensor in single}
    for tensor in stacked:
        np.testing.assert_array_equal(tensor.data(), values[tensor.name], tensor.name)


def without(*parts: str) -> Callable[[Arrays], Arrays]:
    return lambda tensors: {name: x for name, x in tensors.items() if not any(part in name for part in parts)}


def narrower(tensors: Arrays) -> Arrays:
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    return tensors | {name: np.ascontiguousarray(tensors[name][:-1])}


def transposed(tensors: Arrays) -> Arrays:
    name = "model.layers.2.mlp.experts.gate_up_proj"
    return merged(tensors) | {name: np.ascontiguousarray(tensors[name].swapaxes(1, 2))}


def fewer(tensors: Arrays) -> Arrays:
    name = "model.layers.0.mlp.experts.down_proj"
    return merged(tensors) | {name: tensors[name][:-1]}


DAMAGED: dict[str, tuple[Callable[[Arrays], Arrays], dict[str, Any], str]] = {
    "half of the experts": (
        without(*(f"experts.{n}." for n in (4, 5, 6, 7))),
        {},
        r"model\.layers\.0\.mlp\.experts\.4\.gate_proj\.weight: missing from the checkpoint; is a shard missing\?",
    ),
    "one matrix of an expert": (
        without("layers.1.mlp.experts.6.down_proj"),
        {},
        r"model\.layers\.1\.mlp\.experts\.6\.down_proj\.weight: missing",
    ),
    "the experts of a layer": (without("layers.2.mlp.experts"), {}, r"layers\.2\.mlp\.experts\.0\.gate_proj"),
    "the router": (without("layers.1.mlp.gate"), {}, r"model\.layers\.1\.mlp\.gate\.weight: missing"),
    "a narrower expert": (narrower, {}, r"experts\.5\.up_proj\.weight: shape \(47, 64\), wanted \(48, 64\)"),
    "a transposed stack": (transposed, {}, r"gate_up_proj: shape \(8, 64, 96\), wanted \(8, 96, 64\)"),
    "a stack of fewer": (fewer, {}, r"down_proj: shape \(7, 64, 48\), wanted \(8, 64, 48\)"),
    "a layer": (without("layers.2."), {}, "tensors are of 2 layers, but config.json says num_hidden_layers 3"),
    "more experts than stated": (dict, {"num_local_experts": 4}, r"mlp\.gate\.weight: shape \(8, 64\), wanted \(4, "),
    "two numbers of experts": (dict, {"num_experts": 9}, "num_local_experts: found 8, wanted 9, as num_experts says"),
    "more used than there are": (
        dict,
        {"num_experts_per_tok": 9},
        "num_experts_per_tok: found 9, wanted at most the 8",
    ),
    "weights that are not normalized": (dict, {"norm_topk_prob": False}, "norm_topk_prob: found False, wanted True"),
    "dense layers between": (dict, {"mlp_only_layers": [1]}, r"mlp_only_layers: found \[1\], wanted \[\]"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named_before_a_byte_is_written(
    damage: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    change, config, message = DAMAGED[damage]
    folder = edited(checkpoint("qwen3moe"), tmp_path / "damaged", change, **config)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def transposed_expansion(tensors: Arrays) -> Arrays:
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    return tensors | {name: np.ascontiguousarray(tensors[name].T)}


def with_plain_queries(tensors: Arrays) -> Arrays:
    return tensors | {"model.layers.0.self_attn.q_proj.weight": np.zeros((96, 48), np.float32)}


OTHERS: dict[str, tuple[str, Callable[[Arrays], Arrays], dict[str, Any], str]] = {
    "half of the experts": (
        "deepseek3",
        without(*(f"experts.{n}." for n in (4, 5, 6, 7))),
        {},
        r"model\.layers\.1\.mlp\.experts\.4\.gate_proj\.weight: missing from the checkpoint; is a shard missing\?",
    ),
    "the bias of the choice": (
        "deepseek3",
        without("layers.2.mlp.gate.e_score"),
        {},
        "e_score_correction_bias: missing",
    ),
    "a layer": (
        "deepseek3",
        without("layers.2."),
        {},
        "tensors are of 2 layers, but config.json says num_hidden_layers",
    ),
    "a transposed expansion": (
        "deepseek3",
        transposed_expansion,
        {},
        r"kv_b_proj\.weight: shape \(56, 132\), wanted \(132, 56\)",
    ),
    "another number of heads": (
        "deepseek2",
        dict,
        {"num_key_value_heads": 1},
        "found 1, wanted 3, as num_attention_heads",
    ),
    "both kinds of queries": ("deepseek3", with_plain_queries, {}, r"q_proj\.weight: exists, but q_lora_rank"),
    "another kind of queries": ("deepseek3", dict, {"q_lora_rank": None}, r"q_proj\.weight: missing"),
    "another score": ("deepseek3", dict, {"scoring_func": "softmax"}, "scoring_func: found 'softmax', wanted sigmoid"),
    "a biased choice without a bias": ("deepseek2", dict, {"topk_method": "noaux_tc"}, "topk_method: found 'noaux_tc'"),
    "pairs in halves": ("deepseek3", dict, {"rope_interleave": False}, "rope_interleave: found False, wanted True"),
    "more noise": ("phimoe", dict, {"router_jitter_noise": 0.1}, r"router_jitter_noise: found 0\.1, wanted 0\.01"),
    "three of a mixer's experts": (
        "phimoe",
        dict,
        {"num_experts_per_tok": 3},
        "num_experts_per_tok: found 3, wanted 2",
    ),
    "other mixed layers": ("llama4", dict, {"moe_layers": [0, 1]}, r"moe_layers: found \[0, 1\], wanted \[1, 3\]"),
    "other rotated layers": ("llama4", dict, {"no_rope_layers": [0, 1, 1, 1, 1]}, "no_rope_layers: found"),
    "no norms of heads": ("llama4", dict, {"use_qk_norm": False}, "use_qk_norm: found False, wanted false with 128"),
}


@pytest.mark.parametrize("damage", OTHERS)
def test_what_an_architecture_cannot_express_is_named(
    damage: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    family, change, config, message = OTHERS[damage]
    folder = edited(checkpoint(family), tmp_path / "damaged", change, **config)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize("family", ["gpt-oss", "qwen2moe"])
def test_routers_and_biases_are_float32(family: str, tmp_path: Path) -> None:
    """llama.cpp adds biases of experts, and routes, in float32."""
    folder = make_checkpoint(family, tmp_path / "bfloat16", dtype="bfloat16")
    for outtype in ("auto", "q8_0"):
        types = {t.name: t.type for t in plan_conversion(folder, outtype=outtype).model.tensors}
        plain = {name for name in types if name.endswith("bias") or "gate_inp" in name or "norm" in name}
        assert {types[name] for name in plain} == {GGMLType.F32}
        assert GGMLType.F32 not in {types[name] for name in types.keys() - plain if "sinks" not in name}


def with_a_further_layer(tensors: Arrays) -> Arrays:
    """A fourth layer, as GLM 4.5's checkpoints have it, with matrices that no other layer has."""
    extra = {name.replace("layers.2", "layers.3"): x.copy() for name, x in tensors.items() if "layers.2" in name}
    return tensors | extra | {"model.layers.3.eh_proj.weight": np.zeros((64, 128), np.float32)}


def test_layers_that_predict_further_tokens_are_left_out(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    plain = plan_conversion(checkpoint("glm4moe"))
    folder = edited(checkpoint("glm4moe"), tmp_path / "further", with_a_further_layer, num_nextn_predict_layers=1)
    conversion = plan_conversion(folder)
    assert [t.name for t in conversion.model.tensors] == [t.name for t in plain.model.tensors]
    assert conversion.model.metadata["glm4moe.block_count"].data == 3
    assert [note for note in conversion.notes if "further" in note] == [
        "41 tensors of layers that predict further tokens are left out, as transformers does"
    ]
    none = edited(checkpoint("glm4moe"), tmp_path / "none", with_a_further_layer, num_nextn_predict_layers=0)
    with pytest.raises(InputError, match=r"tensors are of 4 layers, but config\.json says num_hidden_layers 3"):
        plan_conversion(none)
