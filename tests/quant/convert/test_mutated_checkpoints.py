"""Mutated checkpoints cause one InputError or give a file with transformers' logits, and nothing else."""

import copy
import json
import shutil
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError

from lltool.engine.model import load_model
from lltool.gguf.errors import InputError
from lltool.quant.convert.conversion import plan_conversion, write_conversion
from tests.tiny_checkpoints import make_checkpoint

JUNK: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 7, 62, 16, 32, 64, 2**31, 2**70, 10**400, 1.5, 1e-40, 1e39, float("nan")),
    *("text", "", "linear", "dynamic", "yarn", [], ["x", None], {}, {"a": {"b": 1}}, 0.5, 3580165449.0),
)
KEYS = (
    "architectures",
    "attention_bias",
    "final_logit_softcapping",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "quantization_config",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "sliding_window_pattern",
    "text_config",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "dynamic", "factor": 2.0},
    {"type": "linear", "factor": 3},
    YARN,
    YARN | {"truncate": False},
    YARN | {"beta_fast": 8, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.2},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"full_attention": {"rope_type": "default", "rope_theta": 77.0}},
    {"rope_theta": 5e5},
)
# The exceptions that transformers raises for checkpoints that it does not load.
_REFUSALS = (
    StrictDataclassError,
    OSError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
EXTRA = ("layers.0.self_attn.q_proj.bias", "layers.9.input_layernorm.weight", "score.weight", "x.lora_A.weight")


def mutate(random: Random, config: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Makes one change to the config and returns the tensors, of which one or all may change too."""
    import torch

    name = random.choice(sorted(tensors))
    embedding = tensors.get("model.embed_tokens.weight")
    match random.randrange(10):
        case 0 | 1:
            config[random.choice(sorted(config))] = copy.deepcopy(random.choice(JUNK))
        case 2 | 3:
            config[random.choice(KEYS)] = copy.deepcopy(random.choice(JUNK))
        case 4:
            config[random.choice(["rope_scaling", "rope_parameters"])] = dict(random.choice(ROPES))
            config["rope_theta"] = random.choice([1.0, 2, 30, 1e4, 5e9])
        case 5:
            prefix = random.choice(["module.", "_orig_mod.", "base_model.model.", "x.", ""])
            return {prefix + (name if prefix else name.removeprefix("model.")): v for name, v in tensors.items()}
        case 6:
            values = tensors[name]
            shapes = (values[:-1], values.reshape(-1), values.reshape(len(values) // 2, -1), values.T)
            tensors[name] = random.choice(shapes)
        case 7:
            kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.bool)
            tensors[name] = tensors[name].to(random.choice(kinds))
        case 8 if embedding is not None:
            config["tie_word_embeddings"] = random.random() < 0.7
            if random.random() < 0.3:
                tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
            else:
                tensors["lm_head.weight"] = random.choice([embedding, torch.randn_like(embedding.float())])
        case _:
            if random.random() < 0.5:
                tensors.pop(name)
            else:
                tensors[f"model.{random.choice(EXTRA)}"] = torch.randn(64)
    return tensors


def transformers_logits(folder: Path, ids: Any) -> Any:
    """The logits of transformers, or None if it does not load the whole checkpoint."""
    import torch
    import transformers

    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
            return None if loading["missing_keys"] else model(torch.tensor(ids[None])).logits[0].numpy()
    except _REFUSALS:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "llama3-rope", "mistral", "qwen2-yarn", "qwen3", "gemma3"])
def test_mutated_checkpoints(family: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_checkpoint(family, tmp_path / "base", num_hidden_layers=7 if family == "gemma3" else 2)
    config, tensors = json.loads((base / "config.json").read_text()), load_file(base / "model.safetensors")
    random, ends = Random(1), Counter[str]()
    folder, file = tmp_path / "m", tmp_path / "m.gguf"
    for _ in range(50):
        values, changed = copy.deepcopy(config), dict(tensors)
        for _ in range(random.choice([1, 1, 2])):
            changed = mutate(random, values, changed)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        (folder / "config.json").write_text(json.dumps(values))
        save_file({name: v.contiguous().clone() for name, v in changed.items()}, folder / "model.safetensors")
        file.unlink(missing_ok=True)
        try:
            write_conversion(plan_conversion(folder, threads=1), file)
        except InputError as error:
            message = str(error)
        else:
            message = ""
        if message:
            assert message.startswith(str(folder))
            assert not file.exists()
            ends["refused"] += 1
            continue
        with load_model(file, precision="f32", threads=1) as model:
            ids = np.random.default_rng(1).integers(0, 300, min(80, model.context))
            found = model.forward([(model.new_sequence(), ids, "all")]).all()
        wanted = transformers_logits(folder, ids)
        if wanted is not None and np.isfinite(wanted).all():
            assert np.abs(found - wanted).max() / np.ptp(wanted) < 3e-4, values
            ends["same logits"] += 1
    assert min(ends["refused"], ends["same logits"]) > 5, ends
