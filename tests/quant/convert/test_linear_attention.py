"""Qwen's gated delta nets: every tensor by its definition, written out by heads, and what is left out or refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.convert.conversion import plan_conversion
from tests.quant.convert.test_experts import edited, stacks_of
from tests.tiny_checkpoints import LINEAR, make_checkpoint

Arrays = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            sizes = {"linear_key_head_dim": 8, "linear_value_head_dim": 12}  # other than each other
            made[family] = make_checkpoint(family, tmp_path_factory.mktemp("checkpoint") / family, **sizes)
        return made[family]

    return make


def ungroup(fused: NDArray[np.float32], heads: int, sizes: list[int]) -> list[NDArray[np.float32]]:
    """The parts of a matrix that has, for each head of keys, rows of all parts."""
    parts: list[list[NDArray[np.float32]]] = [[] for _ in sizes]
    for head in np.split(fused, heads):
        first = 0
        for part, size in zip(parts, sizes, strict=True):
            part.append(head[first : first + size])
            first += size
    return [np.concatenate(part) for part in parts]


def tile(x: NDArray[np.float32], keys: int, each: int) -> NDArray[np.float32]:
    """Heads of values in the order of files: the first of each head of keys, then the second of each, and so on."""
    heads = np.split(x, keys * each)
    return np.concatenate([heads[key * each + i] for i in range(each) for key in range(keys)])


def expected(tensors: Arrays, config: dict[str, Any], is_tiled: bool) -> Arrays:
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key_dim, value_dim, each = config["linear_key_head_dim"], config["linear_value_head_dim"], values // keys
    found: Arrays = {}
    for name in [name for name in tensors if "linear_attn" in name]:
        x, part = tensors.pop(name), name.split("linear_attn.")[1]
        block = "blk." + name.split(".")[2]

        def order(x: NDArray[np.float32]) -> NDArray[np.float32]:
            return tile(x, keys, each) if is_tiled else x

        match part:
            case "in_proj_qkvz.weight":
                q, k, v, z = ungroup(x, keys, [key_dim, key_dim, each * value_dim, each * value_dim])
                found[f"{block}.attn_qkv.weight"] = np.concatenate([q, k, v])
                found[f"{block}.attn_gate.weight"] = z
            case "in_proj_ba.weight":
                found[f"{block}.ssm_ba.weight"] = x
            case "in_proj_qkv.weight":
                qk = 2 * keys * key_dim
                found[f"{block}.attn_qkv.weight"] = np.concatenate([x[:qk], order(x[qk:])])
            case "in_proj_z.weight":
                found[f"{block}.attn_gate.weight"] = order(x)
            case "in_proj_b.weight" | "in_proj_a.weight":
                found[f"{block}.ssm_{'beta' if '_b' in part else 'alpha'}.weight"] = order(x)
            case "conv1d.weight":
                qk = 2 * keys * key_dim
                found[f"{block}.ssm_conv1d.weight"] = np.concatenate([x[:qk, 0], order(x[qk:, 0])])
            case "A_log":
                found[f"{block}.ssm_a"] = -np.exp(order(x))
            case "dt_bias":
                found[f"{block}.ssm_dt.bias"] = order(x)
            case "norm.weight":
                found[f"{block}.ssm_norm.weight"] = x
            case "out_proj.weight":
                found[f"{block}.ssm_out.weight"] = order(x.T).T
    return found


@pytest.mark.parametrize("family", LINEAR)
def test_every_tensor(family: str, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint(family)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    wanted = stacks_of(tensors) | expected(tensors, config, is_tiled=family != "qwen3next")
    architecture = {name: key for key, name in MODEL_ARCH_NAMES.items()}[family]
    names = get_tensor_name_map(architecture, 8)
    for name, values in tensors.items():  # the others, by the names of PyPI's gguf
        adds_one = name.endswith("norm.weight")
        wanted[f"{names.get_name(name.removesuffix('.weight'))}.weight"] = values + 1 if adds_one else values
    found = {tensor.name: tensor for tensor in plan_conversion(folder).model.tensors}
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        values = np.squeeze(values)  # the gate of the shared expert
        assert (found[name].type, found[name].shape) == (GGMLType.F32, values.shape), name
        stored = found[name].data().view(np.float32).reshape(values.shape)
        np.testing.assert_allclose(stored, values, rtol=1e-6 if name.endswith("ssm_a") else 0, err_msg=name)


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_what_stays_float32(outtype: str, checkpoint: Callable[[str], Path]) -> None:
    tensors = {t.name: t.type.name for t in plan_conversion(checkpoint("qwen35"), outtype).model.tensors}
    plain = {name for name, type in tensors.items() if type == "F32" and name.startswith("blk.0.")}
    names = ("attn_norm.weight", "post_attention_norm.weight", "ssm_a", "ssm_dt.bias", "ssm_norm.weight")
    assert plain == {f"blk.0.{name}" for name in (*names, "ssm_conv1d.weight")}


@pytest.mark.parametrize("family", ["qwen35", "qwen35moe"])
def test_the_text_part_of_a_checkpoint_with_images(
    family: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Names as the Hub has them: the vision part and the layers that predict further tokens are left out and noted."""
    text = json.loads((checkpoint(family) / "config.json").read_text())
    plain = plan_conversion(checkpoint(family)).model

    def change(tensors: Arrays) -> Arrays:
        renamed = {re.sub(r"^model\.", "model.language_model.", name): values for name, values in tensors.items()}
        extra = np.zeros((2, 2), np.float32)
        return renamed | {
            "model.visual.patch_embed.proj.weight": extra,
            "mtp.fc.weight": extra,
            "mtp.layers.0.input_layernorm.weight": extra[0],
        }

    kind = {"qwen35": "Qwen3_5", "qwen35moe": "Qwen3_5Moe"}[family]
    outer = {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "model_type": text["model_type"].removesuffix("_text"),
        "text_config": {**text, "mtp_num_hidden_layers": 1, "attn_output_gate": True, "mamba_ssm_dtype": "float32"},
    }
    folder = edited(checkpoint(family), tmp_path / "whole", change)
    (folder / "config.json").write_text(json.dumps(outer))
    found = plan_conversion(folder)
    assert [t.name for t in found.model.tensors] == [t.name for t in plain.tensors]
    assert {k: v.data for k, v in found.model.metadata.items() if "rope" in k or "ssm" in k}.keys() == {
        k for k in plain.metadata if "rope" in k or "ssm" in k
    }
    assert found.notes == [
        "2 tensors of layers that predict further tokens are left out, as transformers does",
        "1 tensors are not weights of the text model and are left out",
    ]


def layers(*kinds: str) -> dict[str, Any]:
    return {"layer_types": [f"{kind}_attention" for kind in kinds]}


@pytest.mark.parametrize(
    ("values", "flags", "period"),
    [
        (layers("linear", "full", "linear", "full"), [True, False, True, False], 2),
        (layers("full", "full", "full", "full"), [False] * 4, 1),
        (layers("linear", "full", "full", "linear"), [True, False, False, True], None),
        ({"layer_types": None, "full_attention_interval": 3}, [True, True, False, True], 3),
        ({"layer_types": None}, [True, True, True, False], 4),
    ],
)
def test_which_layers_are_recurrent(
    values: dict[str, Any],
    flags: list[bool],
    period: int | None,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    from lltool.quant.convert.families.registry import find_family

    config = json.loads((checkpoint("qwen35") / "config.json").read_text()) | values
    family, parsed = find_family(config, "config.json")
    keys = family.describe(parsed)
    assert keys["attention.recurrent_layers"].data.tolist() == flags
    assert (keys["full_attention_interval"].data if "full_attention_interval" in keys else None) == period
    assert parsed.values["layer_types"] == layers(*("linear" if flag else "full" for flag in flags))["layer_types"]


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "qwen35",
            layers("linear", "sliding", "linear", "full"),
            "layer_types: found .*, wanted linear_attention or fu",
        ),
        ("qwen35", layers("linear"), "for each of 4 layers"),
        ("qwen35", {"linear_num_value_heads": 4}, "linear_num_value_heads: found 4, wanted a multiple of the 3 heads"),
        ("qwen35", {"linear_value_head_dim": 16}, r"in_proj_qkv\.weight: shape .*, which is 2 \* linear_num_key_heads"),
        ("qwen3next", {"norm_topk_prob": False}, "norm_topk_prob: found False, wanted True"),
        ("qwen3next", {"mlp_only_layers": [1]}, r"mlp_only_layers: found \[1\]"),
        ("qwen35", {"attention_bias": True}, "attention_bias: found True, wanted False"),
        ("qwen35", {"hidden_act": "gelu"}, "hidden_act: found 'gelu', wanted silu"),
        ("qwen35", {"rope_parameters": {"mrope_section": [1] * 5}}, "up to four numbers in mrope_section"),
    ],
)
def test_what_would_compute_something_else_is_refused(
    family: str, change: dict[str, Any], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        plan_conversion(edited(checkpoint(family), tmp_path / "edited", lambda tensors: tensors, **change))


def test_a_part_that_is_missing_or_belongs_to_another_layer_is_named(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    lost = "model.layers.1.linear_attn.A_log"

    def drop(tensors: Arrays) -> Arrays:
        return {name: values for name, values in tensors.items() if name != lost}

    with pytest.raises(InputError, match=rf"{lost}: missing from the checkpoint"):
        plan_conversion(edited(checkpoint("qwen35"), tmp_path / "lost", drop))

    def move(tensors: Arrays) -> Arrays:
        return tensors | {"model.layers.3.linear_attn.A_log": tensors[lost]}

    with pytest.raises(InputError, match="1 tensors have no place in qwen35"):
        plan_conversion(edited(checkpoint("qwen35"), tmp_path / "moved", move))


def test_sections_of_images_positions_come_back(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    from lltool.quant.convert.conversion import convert
    from lltool.quant.convert.export import export

    config = json.loads((checkpoint("qwen35") / "config.json").read_text())
    rope = {"rope_parameters": config["rope_parameters"] | {"mrope_section": [2, 1, 1]}}
    folder = edited(checkpoint("qwen35"), tmp_path / "edited", lambda tensors: tensors, **rope)
    gguf = convert(folder, tmp_path / "m.gguf")
    back = json.loads((export(gguf, tmp_path / "back") / "config.json").read_text())
    assert back["rope_scaling"]["mrope_section"] == [2, 1, 1]
