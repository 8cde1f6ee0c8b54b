"""Conversion tables on tiny checkpoints: name and values of every tensor, keys, and configs that are refused."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.convert.conversion import convert, plan_conversion
from lltool.quant.convert.families.registry import FAMILIES, find_family
from tests.derived_checkpoints import DERIVED, make_with_original
from tests.tiny_checkpoints import FAMILIES as TINY
from tests.tiny_checkpoints import LINEAR, MIXTURES, make_checkpoint
from tests.tiny_gemma import GEMMA, NEWER


def edit_config(folder: Path, copy: Path, **values: Any) -> Path:
    """A checkpoint that differs only in config.json; None removes a key."""
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text()) | values
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return copy


# llama.cpp's tensor names, written independently of our tables.
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = GGUF_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def expected_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """The GGUF tensors of a checkpoint by definition: adjacent rotary pairs (llama), 1 + norm (gemma)."""
    from safetensors.numpy import load_file

    names = GEMMA_NAMES if config["model_type"] == "gemma3_text" else GGUF_NAMES
    expected = {}
    for name, values in load_file(folder / "model.safetensors").items():
        if ".act_fn." in name:  # the value of a key
            continue
        stem, kind = name.rsplit(".", 1)
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", stem)
        gguf = f"blk.{layer[1]}.{names[layer[2]]}" if layer else names[stem]
        if config["model_type"] in ("llama", "mistral") and gguf.endswith(("attn_q", "attn_k")):
            heads = config["num_attention_heads" if gguf.endswith("q") else "num_key_value_heads"]
            dim = values.shape[0] // heads
            paired = np.empty_like(values)
            for head in range(heads):
                for i in range(dim // 2):
                    paired[head * dim + 2 * i] = values[head * dim + i]
                    paired[head * dim + 2 * i + 1] = values[head * dim + dim // 2 + i]
            values = paired
        if config["model_type"] == "gemma3_text" and "norm" in gguf:
            values = 1 + values
        expected[f"{gguf}.{kind}"] = values
    return expected


NAMED = [
    family
    for family in TINY
    if family.startswith(("llama", "mistral", "qwen", "gemma3")) and family not in (*MIXTURES, *LINEAR, *GEMMA)
]


@pytest.mark.parametrize("family", NAMED)
def test_every_tensor(family: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint(family)
    expected = expected_tensors(folder, json.loads((folder / "config.json").read_text()))
    with open_gguf(convert(folder, tmp_path / "m.gguf")) as file:
        found = {tensor.name: tensor for tensor in file.tensors}
        assert found.keys() - {"rope_freqs.weight"} == expected.keys()
        assert file.tensors[0].name == "token_embd.weight"
        for name, values in expected.items():
            assert found[name].type == GGMLType.F32
            np.testing.assert_array_equal(found[name].data().view(np.float32).reshape(values.shape), values, name)


# Those of the recurrent families whose tensors are stacked or split.
STACKED = ("granite4", "jamba", "granitehybrid", "lfm2moe", "nemotron-h-moe", "kimi-linear", "kimi-linear-published")


@pytest.mark.parametrize(
    "family",
    [family for family in (*TINY, *DERIVED) if family not in (*MIXTURES, *LINEAR, *STACKED, *GEMMA, *NEWER)],
)
def test_names_are_those_of_gguf(family: str, tmp_path: Path) -> None:
    """Each checkpoint tensor has the GGUF name that PyPI's gguf maps it to; or it is split, as here written out."""
    from safetensors.numpy import load_file

    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    folder = tmp_path / family
    make_with_original(family, folder)
    model = plan_conversion(folder).model
    architecture = {name: key for key, name in MODEL_ARCH_NAMES.items()}[model.metadata["general.architecture"].data]
    names = get_tensor_name_map(architecture, 8)
    found = {tensor.name: tensor.rows * tensor.columns for tensor in model.tensors if "rope_f" not in tensor.name}
    for name, values in load_file(folder / "model.safetensors").items():
        if ".act_fn." in name:  # the value of a key
            continue
        name = name.replace(".dt_bias", ".dt_proj.bias")  # as llama.cpp's converter does
        if whole := names.get_name(name):
            assert found.pop(whole) == values.size, name
            continue
        stem, kind = re.sub(r"\.norms\.\d+", "", name).rsplit(".", 1)
        split = next((parts for part, parts in SPLIT.items() if part in stem), None)
        layer = re.search(r"\.(\d+)\.", stem)
        if split and layer and family in ("internlm2", "baichuan", "baichuan2"):
            assert sum(found.pop(f"blk.{layer[1]}.{part}.{kind}") for part in split) == values.size
            continue
        mapped = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
        assert mapped, name
        if "q_norm" in mapped or "k_norm" in mapped:
            found.pop(f"{mapped}.{kind}", None)  # several sources may become one
        else:
            assert found.pop(f"{mapped}.{kind}") == values.size, name
    assert not found


SPLIT = dict.fromkeys(("wqkv", "W_pack"), ("attn_q", "attn_k", "attn_v"))


def test_biases_of_llama(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama", attention_bias=True, mlp_bias=True)
    expected = expected_tensors(folder, json.loads((folder / "config.json").read_text()))
    assert "blk.2.ffn_down.bias" in expected
    # The pairs of a bias are its elements; the expected values were reordered as rows.
    with open_gguf(convert(folder, tmp_path / "m.gguf")) as file:
        for tensor in file.tensors:
            np.testing.assert_array_equal(tensor.data().view(np.float32).ravel(), expected[tensor.name].ravel())


OLD_SPELLINGS: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 10000.0},
    "llama3-rope": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2-yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    "gemma3": {
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window_pattern": 6,
        "layer_types": None,
    },
}


@pytest.mark.parametrize("family", OLD_SPELLINGS)
def test_old_and_new_spelling_give_the_same(family: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    new = checkpoint(family)
    old = edit_config(new, tmp_path / family, rope_parameters=None, **OLD_SPELLINGS[family])
    old_model, new_model = plan_conversion(old).model, plan_conversion(new).model
    keys = [key for key in new_model.metadata if "rope" in key or "sliding" in key]
    assert keys
    for key in keys:
        assert old_model.metadata[key] == new_model.metadata[key]
    assert [t.name for t in old_model.tensors] == [t.name for t in new_model.tensors]


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act: found 'gelu', wanted silu"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling 'longrope' is not su"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope factor: found None, wanted a number from"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads: found 3, wanted a divisor of 4"),
        ("llama", {"num_hidden_layers": -1}, "num_hidden_layers: found -1, wanted a positive integer"),
        ("llama", {"rms_norm_eps": "tiny"}, "rms_norm_eps: found 'tiny', wanted a positive number"),
        ("lfm2", {"layer_types": [{}, "conv", "conv", "conv", "conv"]}, "full_attention or conv for each of 5 layers"),
        ("lfm2", {"layer_types": ["conv"]}, "full_attention or conv for each of 5 layers"),
        ("lfm2", {"conv_bias": True}, "the model would compute something else"),
        ("mamba", {"expand": 3, "intermediate_size": 120}, "twice hidden_size"),
        ("mamba2", {"n_groups": 4}, "a divisor of the 6 heads"),
        ("mamba2", {"time_step_limit": [0.0, 0.1]}, "the model would compute something else"),
        ("jamba", {"attn_layer_offset": 3}, "an integer from 0, below 3"),
        ("falcon-h1", {"ssm_multipliers": [1.0, 2.0]}, "5 positive numbers"),
        ("falcon-h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": True}, "mamba_norm_before_gate: found True"),
        ("granitehybrid", {"layer_types": [[], "mamba", "attention", "mamba"]}, "mamba or attention for each of 4"),
        ("granitehybrid", {"position_embedding_type": "rope"}, "the model would compute something else"),
        ("granite4", {"position_embedding_type": None}, "rope, where no layer has a scan"),
        (
            "granite4",
            {"layer_types": ["full_attention", "window", "full_attention"]},
            "mamba or attention for each of 3",
        ),
        ("granite4", {"num_local_experts": 4}, "num_local_experts: found 4, wanted 0"),
        ("nemotron-h", {"layers_block_type": ["mlp", "moe", "full_attention", "mlp", "mlp"]}, "either mlp or moe"),
        (
            "nemotron-h",
            {"layers_block_type": ["mlp", 3]},
            "linear_attention, full_attention, mlp, moe, mamba, attention",
        ),
        (
            "nemotron-h",
            {"hybrid_override_pattern": "M-*-M", "layers_block_type": ["mlp"] * 5},
            "a layer with attention",
        ),
        ("nemotron-h", {"n_groups": 4}, "a divisor of the 6 heads"),
        ("nemotron-h", {"mlp_bias": True}, "mlp_bias: found True, wanted False"),
        ("kimi-linear", {"linear_num_heads": 6}, "linear_num_heads: found 6, wanted 3, as latent attention"),
        ("kimi-linear", {"layer_types": ["full_attention"] * 5}, "layers of both kinds"),
        ("kimi-linear", {"linear_attn_config": {"full_attn_layers": [2]}, "layer_types": None}, "each of 5 layers in"),
        ("kimi-linear", {"moe_renormalize": False}, "moe_renormalize: found False, wanted True"),
        ("llama", {"architectures": ["RwkvForCausalLM"]}, "architecture 'RwkvForCausalLM' is not supported"),
        ("llama", {"num_hidden_layers": 4}, "tensors are of 3 layers, but config.json says num_hidden_layers 4"),
        ("llama", {"num_hidden_layers": 2}, "tensors are of 3 layers, but config.json says num_hidden_layers 2"),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "'llama3' is not supported for this"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types: found"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention: found True"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: found 50.0"),
        ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation: found 'gelu'"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 0]}, "no_rope_layers: found .*, wanted 0 in every fourth layer"),
        ("falcon", {"alibi": True}, "alibi: found True, wanted False; the model would compute something else"),
        ("gpt2", {"activation_function": "relu"}, "activation_function: found 'relu', wanted gelu_new"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: found True"),
        ("gpt2", {"n_head": 3}, "n_embd: found 64, wanted a multiple of 3 heads"),
        ("bloom", {"n_layer": 4}, "tensors are of 3 layers, but config.json says n_layer 4"),
        ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln: found True, wanted False"),
        ("phi4-longrope", {"rope_parameters": {"rope_type": "longrope", "factor": 2}}, "long_factor: found None"),
        ("starcoder", {"multi_query": False}, "multi_query: found False, wanted True"),
        ("gptj", {"rotary_dim": 7}, "rotary_dim: found 7, wanted an even number up to 16"),
        ("stablelm", {"qk_layernorm": True}, r"q_layernorm.norms.0.weight: missing from the checkpoint; is a shard"),
        ("nemotron", {"hidden_act": "silu"}, "hidden_act: found 'silu', wanted relu2"),
    ],
)
def test_what_would_compute_something_else_is_refused(
    family: str, change: dict[str, Any], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        plan_conversion(edit_config(checkpoint(family), tmp_path / "edited", **change))


def test_what_only_a_part_of_the_layers_or_experts_has_is_named(tmp_path: Path) -> None:
    """A number that a checkpoint stores as a tensor, for each layer."""
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint("apertus", tmp_path / "apertus")
    metadata = plan_conversion(folder).model.metadata
    tensors = load_file(folder / "model.safetensors")
    stored = [tensors[f"model.layers.{layer}.mlp.act_fn.alpha_p"].item() for layer in range(3)]
    assert metadata["xielu.alpha_p"].data.tolist() == stored
    assert metadata["xielu.beta"].data.tolist() == [0.5] * 3
    for values, message in ((None, "missing from the checkpoint"), (np.ones(2, np.float32), "wanted one number")):
        changed = tensors | {"model.layers.1.mlp.act_fn.alpha_p": values}
        save_file({name: x for name, x in changed.items() if x is not None}, folder / "model.safetensors")
        with pytest.raises(InputError, match=rf"model\.layers\.1\.mlp\.act_fn\.alpha_p: .*{message}"):
            plan_conversion(folder)


def test_unknown_keys_are_noted(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    assert plan_conversion(checkpoint("llama")).notes == []
    notes = plan_conversion(edit_config(checkpoint("llama"), tmp_path / "x", mystery_factor=2.0)).notes
    assert notes == ["config.json has unknown keys, which are assumed not to matter: mystery_factor"]


def test_text_part_of_gemma3_with_vision(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Both spellings of the text model's names are accepted; vision tensors are left out, which is noted."""
    from safetensors.numpy import load_file, save_file

    text = checkpoint("gemma3")
    config = json.loads((text / "config.json").read_text())
    plain = plan_conversion(text).model
    for prefix in ("language_model.model.", "model.language_model."):
        folder = tmp_path / prefix.replace(".", "_")
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).symlink_to(text / name)
        tensors = load_file(text / "model.safetensors")
        renamed = {prefix + name.removeprefix("model."): values for name, values in tensors.items()}
        renamed["vision_tower.vision_model.embeddings.weight"] = np.zeros((2, 2), np.float32)
        save_file(renamed, folder / "model.safetensors")
        outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config}
        (folder / "config.json").write_text(json.dumps(outer))
        conversion = plan_conversion(folder)
        assert [t.name for t in conversion.model.tensors] == [t.name for t in plain.tensors]
        assert conversion.model.metadata["gemma3.block_count"] == plain.metadata["gemma3.block_count"]
        assert conversion.notes == ["1 tensors are not weights of the text model and are left out"]


def test_defaults_are_those_of_transformers() -> None:
    """A key that a config.json leaves out has the default of transformers' config class."""
    import transformers

    compared = 0
    for family in FAMILIES:
        model = family.models[0].replace("LLaMA", "Llama")
        if not hasattr(transformers, model):
            continue
        compared += 1
        config = getattr(transformers, model).config_class()
        for key, value in family.defaults.items():
            key = family.spelling.get(key, key)
            if "rope" in key or key in ("partial_rotary_factor", "seq_length"):  # not attributes of the class
                continue
            if "Gemma4" in model and key in ("head_dim", "global_head_dim", "num_key_value_heads"):  # of some layers
                continue
            found = getattr(config, key)
            if key == "sliding_window" and "Qwen" in model:
                assert found is None or found == value  # null unless use_sliding_window
            else:
                assert found == value, (model, key)

    assert compared > 25


def test_a_sliding_window_of_null_means_no_window() -> None:
    config = {"architectures": ["MistralForCausalLM"], "sliding_window": None}
    family, parsed = find_family(config, "config.json")
    assert "attention.sliding_window" not in family.describe(parsed)
    family, parsed = find_family({"architectures": ["MistralForCausalLM"]}, "config.json")
    assert family.describe(parsed)["attention.sliding_window"].data == 4096
