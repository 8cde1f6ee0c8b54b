"""Rotary settings between config.json and GGUF keys.

transformers 5 writes `rope_parameters` (one, or one a kind of layer); files in the wild have `rope_theta` and
`rope_scaling`. Formulas: transformers' modeling_rope_utils; the meaning of the GGUF keys: llama.cpp.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.families.config import Config
from lltool.gguf.families.stored import Stored
from lltool.gguf.metadata import Value, f32, string, u32

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_OPTIONAL = frozenset({"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})
LAYER_KINDS = ("full_attention", "sliding_attention")


def read_rope(config: Config, types: Sequence[str], kind: str = "full_attention") -> dict[str, Any]:
    """The rotary settings of layers of `kind`, as `rope_parameters` has them, with rope_type and rope_theta in it.

    Raises InputError for a type of scaling that is not among `types`.
    """
    config.expect("partial_rotary_factor", 1.0)
    config.expect("rope_interleaved", False)
    found = _object(config, "rope_parameters", config.get("rope_parameters", {}))
    if any(layer in found for layer in LAYER_KINDS):
        found = _object(config, "rope_parameters", found.get(kind) or {})
    elif kind != "full_attention":
        found = {}
    scaling = _object(config, "rope_scaling", config.get("rope_scaling", {})) if kind == "full_attention" else {}
    base = config.number("rope_theta" if kind == "full_attention" else "rope_local_base_freq", 10000.0)
    parameters = {"rope_theta": base, **scaling, **found}
    type = parameters["rope_type"] = parameters.get("rope_type", parameters.get("type", "default"))
    if type not in types:
        wanted = " or ".join(types)
        raise InputError(f"{config.file}: rope scaling {type!r} is not supported for this model; wanted {wanted}")
    if type in ("llama3", "yarn"):
        outer = config.get("original_max_position_embeddings", config.integer("max_position_embeddings"))
        parameters.setdefault("original_max_position_embeddings", outer)
    parameters.setdefault("partial_rotary_factor", 1.0)
    for key in ("rope_theta", "partial_rotary_factor", *_NEEDED[type]):
        _check_number(config, parameters, key)
    for key in _OPTIONAL.intersection(parameters):
        if parameters[key] is not None:
            _check_number(config, parameters, key)
    if parameters["partial_rotary_factor"] != 1.0:
        raise InputError(f"{config.file}: partial_rotary_factor {parameters['partial_rotary_factor']}, wanted 1.0")
    if type == "llama3" and parameters["high_freq_factor"] <= parameters["low_freq_factor"]:
        raise InputError(f"{config.file}: rope high_freq_factor is not above low_freq_factor")
    return parameters


def describe_rope(config: Config, parameters: Mapping[str, Any]) -> dict[str, Value]:
    """GGUF keys (without the architecture) of one rotary. Llama 3's scaling is a tensor instead: `llama3_divisors`."""
    keys = {"rope.freq_base": f32(parameters["rope_theta"])}
    if parameters["rope_type"] not in ("linear", "yarn"):
        return keys
    factor = parameters["factor"]
    keys["rope.scaling.type"] = string(parameters["rope_type"])
    keys["rope.scaling.factor"] = f32(factor)
    if parameters["rope_type"] == "yarn":
        if not parameters.get("truncate", True):
            raise InputError(f"{config.file}: rope truncate false is not supported")
        keys["rope.scaling.original_context_length"] = u32(int(parameters["original_max_position_embeddings"]))
        if attention := _yarn_attention(parameters):
            # The engines multiply by YaRN's own magnitude themselves.
            keys["rope.scaling.attn_factor"] = f32(attention / _yarn_magnitude(factor))
        for name in ("beta_fast", "beta_slow"):
            if parameters.get(name):
                keys[f"rope.scaling.yarn_{name}"] = f32(parameters[name])
    return keys


def restore_rope(stored: Stored) -> dict[str, Any]:
    """rope_theta and rope_scaling from GGUF keys and the data of `rope_freqs.weight`.

    They are the older spelling, which every version of transformers reads.
    """
    base = stored.number("rope.freq_base", 10000.0)
    if stored.rope_divisors is not None:
        return {"rope_theta": base, "rope_scaling": _restore_llama3(stored.rope_divisors, base)}
    type = stored.choice("rope.scaling.type", "linear", "none", "linear", "yarn")
    # As for llama.cpp, a factor of 0 is none.
    factors = [key for key in ("rope.scaling.factor", "rope.scale_linear") if stored.keys.get(key)]
    factor = stored.number(factors[0]) if factors else 1.0
    if type == "none" or factor == 1.0:
        return {"rope_theta": base, "rope_scaling": None}
    parameters: dict[str, Any] = {"rope_type": type, "factor": factor}
    if type == "yarn":
        original = stored.integer("rope.scaling.original_context_length", stored.integer("context_length"))
        parameters["original_max_position_embeddings"] = original
        if "rope.scaling.attn_factor" in stored.keys:
            parameters["attention_factor"] = stored.number("rope.scaling.attn_factor") * _yarn_magnitude(factor)
        for name in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{name}" in stored.keys:
                parameters[name] = stored.number(f"rope.scaling.yarn_{name}")
    return {"rope_theta": base, "rope_scaling": parameters}


def llama3_divisors(parameters: Mapping[str, Any], head_dim: int) -> NDArray[np.float32]:
    """What Llama 3 divides each pair's frequency by: (head_dim / 2,), from 1 (fast pairs) to `factor` (slow pairs)."""
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    frequencies = parameters["rope_theta"] ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = original * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    divisors: NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return divisors


def _restore_llama3(divisors: NDArray[np.float32], theta: float) -> dict[str, Any]:
    """The tensor does not say how it was made, but only the context differs between models."""
    fixed = {"rope_type": "llama3", "factor": float(divisors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for original in (8192, *(1 << n for n in range(5, 21))):
        parameters = {**fixed, "original_max_position_embeddings": original}
        rebuilt = llama3_divisors({**parameters, "rope_theta": theta}, 2 * divisors.size)
        if np.allclose(rebuilt, divisors, rtol=1e-5):
            return parameters
    raise InputError("rope_freqs.weight: not the factors of Llama 3's rope scaling; no config.json can say them")


def _yarn_attention(parameters: Mapping[str, Any]) -> float | None:
    """The magnitude where it is not YaRN's own."""
    if parameters.get("attention_factor"):
        return float(parameters["attention_factor"])
    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and all_dim:
        return _yarn_magnitude(parameters["factor"], mscale) / _yarn_magnitude(parameters["factor"], all_dim)
    return None


def _yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _object(config: Config, key: str, found: Any) -> dict[str, Any]:
    config.require(key, isinstance(found, dict), "an object")
    return dict(found)


def _check_number(config: Config, parameters: Mapping[str, Any], key: str) -> None:
    found: Any = parameters.get(key)
    if type(found) not in (int, float) or not 0 < found < 2**31:
        raise InputError(f"{config.file}: rope {key}: found {found!r}, wanted a positive number")
