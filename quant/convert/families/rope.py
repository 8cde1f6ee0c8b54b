"""Conversion of rotary settings between config.json and GGUF keys.

transformers 5 writes `rope_parameters` (one object, or one for each kind of layer); older files have `rope_theta` and
`rope_scaling`. Formulas: transformers' modeling_rope_utils; meaning of the GGUF keys: llama.cpp.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.architecture_keys import MAX_NUMBER, SCALES
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, f32, string, u32
from lltool.quant.convert.families.config import Config, describe_range, is_between
from lltool.quant.convert.families.keys import Keys, Setting
from lltool.quant.convert.families.stored import Stored

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic")
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "dynamic": ("factor",),
    "proportional": (),
    "longrope": ("original_max_position_embeddings",),
}
_OPTIONAL = frozenset({"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})
LAYER_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Rope(Setting):
    """Rotary positions with one of `types` of scaling.

    With `dims`, the number of rotated dimensions is written; if a model may rotate only a part of a head, `partial`.
    With `exact`, the architecture implies that YaRN's range of blended pairs is not rounded. `kind` is given for models
    with separate settings for each kind of layer.
    """

    types: tuple[str, ...]
    kind: str | None = None
    dims: bool = False
    partial: bool = False
    exact: bool = False

    def describe(self, config: Config) -> Keys:
        parameters = read_rope(config, self.types, self.kind, partial=self.partial)
        rotated = int(config.values["head_dim"] * parameters["partial_rotary_factor"])
        config.require("head_dim", rotated > 0 and rotated % 2 == 0, "a head with an even number of rotated dimensions")
        config.derive("_rotary_dim", rotated)
        if self.exact and parameters["rope_type"] == "yarn":
            rounds = parameters.pop("truncate", True)
            config.require("rope_parameters", rounds is False, "truncate false in it, as the architecture implies")
        keys = describe_rope(config, parameters)
        return keys | ({"rope.dimension_count": u32(rotated)} if self.dims else {})

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        head_dim = config["head_dim"]
        rotated = stored.integer("rope.dimension_count", head_dim)
        if self.partial:
            stored.require("rope.dimension_count", rotated <= head_dim, f"at most {head_dim}")
            # Half a dimension more, because transformers rounds the product down.
            part = rotated / head_dim if rotated % head_dim == 0 else (rotated + 0.5) / head_dim
            return {**restore_rope(stored), "partial_rotary_factor": part, "_rotary_dim": rotated}
        wanted = f"{head_dim}; no config.json of this model can express it"
        stored.require("rope.dimension_count", rotated == head_dim, wanted)
        found = restore_rope(stored)
        if self.exact and found["rope_scaling"]:
            found["rope_scaling"]["truncate"] = False
        return {**found, "_rotary_dim": rotated}


def read_rope(
    config: Config, types: Sequence[str], kind: str | None = None, *, partial: bool = False
) -> dict[str, Any]:
    """The rotary settings in the form of `rope_parameters`, including rope_type and rope_theta.

    `kind` is given for models with separate settings for each kind of layer. Raises InputError for a type of scaling
    that is not among `types` and for invalid numbers.
    """
    if not partial:
        config.expect("partial_rotary_factor", 1.0)
    config.expect("rope_interleaved", False)
    parameters = _choose_settings(config, kind)
    theta = "rope_local_base_freq" if kind == "sliding_attention" else "rope_theta"
    config.get(theta)
    parameters.setdefault("rope_theta", config.values[theta])
    type = parameters["rope_type"] = parameters.get("rope_type", parameters.get("type", "default"))
    if type == "su" and "longrope" in types:
        type = parameters["rope_type"] = "longrope"  # its first name
    if type not in types:
        wanted = " or ".join(types)
        raise InputError(f"{config.file}: rope scaling {short(type)} is not supported for this model; wanted {wanted}")
    if type in ("llama3", "yarn", "longrope"):
        outer = config.get("original_max_position_embeddings")
        original = outer or parameters.get("original_max_position_embeddings", config.get("max_position_embeddings"))
        parameters["original_max_position_embeddings"] = original
    parameters.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0) if partial else 1.0)
    _check_number(config, parameters, "rope_theta", high=MAX_NUMBER)
    if np.float32(parameters["rope_theta"]) <= 1:
        raise InputError(f"{config.file}: rope_theta: found {parameters['rope_theta']}, wanted a number above 1")
    for key in ("partial_rotary_factor", *_NEEDED[type]):
        _check_number(config, parameters, key, high=2**31 - 129 if key.startswith("original") else SCALES[1])
    for key in _OPTIONAL.intersection(parameters):
        if parameters[key] is not None:
            _check_number(config, parameters, key)
    if parameters["partial_rotary_factor"] != 1.0 and not (partial and parameters["partial_rotary_factor"] < 1):
        raise InputError(f"{config.file}: partial_rotary_factor {parameters['partial_rotary_factor']}, wanted 1.0")
    if type == "llama3" and parameters["high_freq_factor"] < parameters["low_freq_factor"]:
        raise InputError(f"{config.file}: rope high_freq_factor is below low_freq_factor")
    return parameters


def _choose_settings(config: Config, kind: str | None) -> dict[str, Any]:
    """The settings that transformers uses; of several, the older rope_scaling takes precedence."""
    stated = _object(config, "rope_parameters", config.get("rope_parameters", {}))
    scaling = _object(config, "rope_scaling", config.get("rope_scaling", {}))
    if kind is None:
        chosen, key = (scaling, "rope_scaling") if scaling else (stated, "rope_parameters")
        is_flat = not any(layer in chosen for layer in LAYER_KINDS)
        config.require(key, is_flat, "one object for all layers, with rope_type and rope_theta")
        return chosen
    nested = any(layer in stated for layer in LAYER_KINDS)
    config.require("rope_parameters", nested or not stated, f"one object for each of {' and '.join(LAYER_KINDS)}")
    found = stated.get(kind)
    parameters = {"rope_type": "default"} if found is None else _object(config, "rope_parameters", found)
    if kind == "full_attention" and scaling:
        config.require("rope_scaling", "rope_type" in scaling, "rope_type in it")
        parameters |= scaling
    return parameters


def describe_rope(config: Config, parameters: Mapping[str, Any]) -> dict[str, Value]:
    """GGUF keys, without the architecture's prefix, for these rotary settings.

    Settings that no key can express become the constant `rope_freqs.weight`, (head_dim / 2,): divisors of the
    frequencies.
    """
    keys = {"rope.freq_base": f32(parameters["rope_theta"])}
    match parameters["rope_type"]:
        case "dynamic":
            config.notes.append(
                f"dynamic rope scaling is left out: it changes nothing up to {config.get('max_position_embeddings')} "
                f"tokens, which is the context length of the file"
            )
        case "llama3":
            config.constants["rope_freqs.weight"] = llama3_divisors(parameters, config.values["_rotary_dim"])
        case "linear":
            keys |= {"rope.scaling.type": string("linear"), "rope.scaling.factor": f32(parameters["factor"])}
        case "yarn":
            keys |= _describe_yarn(config, parameters)
        case "longrope":
            keys |= _describe_longrope(config, parameters)
    return keys


def _describe_yarn(config: Config, parameters: Mapping[str, Any]) -> dict[str, Value]:
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    if original != int(original):
        raise InputError(f"{config.file}: rope original_max_position_embeddings: found {original}, wanted an integer")
    if (parameters.get("beta_fast") or 32) < (parameters.get("beta_slow") or 1):
        raise InputError(f"{config.file}: rope beta_fast is below beta_slow")
    truncate = parameters.get("truncate", True)
    if not isinstance(truncate, bool):
        raise InputError(f"{config.file}: rope truncate: found {short(truncate)}, wanted true or false")
    first, last = _yarn_range(parameters, config.values["_rotary_dim"])
    whole_first, whole_last = _yarn_range({**parameters, "truncate": True}, config.values["_rotary_dim"])
    if last < first or whole_last < whole_first:
        raise InputError(
            f"{config.file}: yarn's settings stretch no frequency: "
            f"original_max_position_embeddings {original} does not fit rope_theta {parameters['rope_theta']}"
        )
    attention = yarn_attention(parameters)
    if attention and not is_between(attention / yarn_magnitude(factor), *SCALES):
        raise InputError(f"{config.file}: rope attention_factor or mscale: {attention} is not a plausible magnitude")
    if (first, last) != (whole_first, whole_last):
        config.constants["rope_freqs.weight"] = _yarn_divisors(factor, first, last, config.values["_rotary_dim"])
        config.notes.append(
            "yarn with truncate false is stored as a tensor, rope_freqs.weight; llama.cpp reads it only for the "
            "architecture llama"
        )
        return {"rope.scaling.attn_factor": f32(attention or yarn_magnitude(factor))}
    keys = {"rope.scaling.type": string("yarn"), "rope.scaling.factor": f32(factor)}
    keys["rope.scaling.original_context_length"] = u32(int(original))
    if attention:
        # Engines multiply the factor by YaRN's default magnitude.
        keys["rope.scaling.attn_factor"] = f32(attention / yarn_magnitude(factor))
    for name in ("beta_fast", "beta_slow"):
        if parameters.get(name):
            keys[f"rope.scaling.yarn_{name}"] = f32(parameters[name])
    return keys


def _describe_longrope(config: Config, parameters: Mapping[str, Any]) -> dict[str, Value]:
    """The original context and the magnitude; the constants are divisors for texts up to that context, and beyond."""
    original, pairs = parameters["original_max_position_embeddings"], config.values["_rotary_dim"] // 2
    longest = config.integer("max_position_embeddings")
    config.require("original_max_position_embeddings", original == int(original) > 1, "an integer above 1")
    for kind in ("long", "short"):
        factors = parameters.get(f"{kind}_factor")
        fine = isinstance(factors, list) and len(factors) == pairs and all(is_between(x, *SCALES) for x in factors)
        if not fine:
            raise InputError(f"{config.file}: rope {kind}_factor: found {short(factors)}, wanted {pairs} numbers")
        config.constants[f"rope_factors_{kind}.weight"] = np.array(factors, np.float32)
    factor = longest / original
    magnitude = parameters.get("attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {"rope.scaling.original_context_length": u32(int(original)), "rope.scaling.attn_factor": f32(magnitude)}


def _restore_longrope(stored: Stored, base: float) -> dict[str, Any]:
    scaling = {
        "rope_type": "longrope",
        "long_factor": stored.constants["rope_factors_long.weight"].tolist(),
        "short_factor": stored.constants["rope_factors_short.weight"].tolist(),
        "attention_factor": stored.number("rope.scaling.attn_factor", 1.0),
    }
    original = stored.integer("rope.scaling.original_context_length", stored.integer("context_length"))
    return {"rope_theta": base, "rope_scaling": scaling, "original_max_position_embeddings": original}


def _yarn_range(parameters: Mapping[str, Any], head_dim: int) -> tuple[float, float]:
    """The range of pairs in which YaRN blends plain into stretched frequencies, as transformers computes it."""
    original, base = parameters["original_max_position_embeddings"], parameters["rope_theta"]
    fast, slow = (
        head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))
        for turns in (parameters.get("beta_fast") or 32, parameters.get("beta_slow") or 1)
    )
    if parameters.get("truncate", True):
        fast, slow = math.floor(fast), math.ceil(slow)
    return max(fast, 0), min(slow, head_dim - 1)


def _yarn_divisors(factor: float, first: float, last: float, head_dim: int) -> NDArray[np.float32]:
    stretched = np.clip((np.arange(head_dim // 2) - first) / max(0.001, last - first), 0, 1)
    divisors: NDArray[np.float32] = (1 / (1 - stretched + stretched / factor)).astype(np.float32)
    return divisors


def restore_rope(stored: Stored) -> dict[str, Any]:
    """rope_theta and rope_scaling, from GGUF keys and the data of `rope_freqs.weight`.

    This is the older form of the settings, which every version of transformers reads. Raises InputError for settings
    that config.json cannot express.
    """
    base = stored.number("rope.freq_base", 10000.0)
    if "rope_factors_long.weight" in stored.constants:
        return _restore_longrope(stored, base)
    if (divisors := stored.constants.get("rope_freqs.weight")) is not None:
        return {"rope_theta": base, "rope_scaling": _restore_llama3(divisors, base)}
    type = stored.choice("rope.scaling.type", "linear", "none", "linear", "yarn")
    # As in llama.cpp, a factor of 0 means that there is none.
    factors = [key for key in ("rope.scaling.factor", "rope.scale_linear") if stored.keys.get(key)]
    factor = stored.number(factors[0]) if factors else 1.0
    if type == "none" or factor == 1.0:
        return {"rope_theta": base, "rope_scaling": None}
    parameters: dict[str, Any] = {"rope_type": type, "factor": factor}
    if type == "yarn":
        original = stored.integer("rope.scaling.original_context_length", stored.integer("context_length"))
        parameters["original_max_position_embeddings"] = original
        if "rope.scaling.attn_factor" in stored.keys:
            parameters["attention_factor"] = stored.number("rope.scaling.attn_factor") * yarn_magnitude(factor)
        for name in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{name}" in stored.keys:
                parameters[name] = stored.number(f"rope.scaling.yarn_{name}")
    return {"rope_theta": base, "rope_scaling": parameters}


def llama3_divisors(parameters: Mapping[str, Any], head_dim: int) -> NDArray[np.float32]:
    """Llama 3's divisors of the frequencies, (head_dim / 2,): from 1 for fast pairs to `factor` for slow pairs."""
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    frequencies = parameters["rope_theta"] ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = original * frequencies / (2 * math.pi)
    # Llama 4's two factors are equal: there is nothing between fast and slow pairs.
    smooth = np.clip((turns - low) / max(high - low, 1e-9), 0, 1)
    divisors: NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return divisors


def _restore_llama3(divisors: NDArray[np.float32], theta: float) -> dict[str, Any]:
    """The rope_scaling with these divisors, found by trying context lengths: models differ in nothing else."""
    fixed = {"rope_type": "llama3", "factor": float(divisors.max()), "low_freq_factor": 1.0}
    for high, original in product((4.0, 1.0), (8192, *(1 << n for n in range(5, 21)))):
        parameters = {**fixed, "high_freq_factor": high, "original_max_position_embeddings": original}
        rebuilt = llama3_divisors({**parameters, "rope_theta": theta}, 2 * divisors.size)
        if np.allclose(rebuilt, divisors, rtol=1e-5):
            return parameters
    raise InputError("rope_freqs.weight: not the factors of Llama 3's rope scaling; no config.json can express them")


def yarn_attention(parameters: Mapping[str, Any]) -> float | None:
    """The stated magnitude, or None if it is YaRN's default."""
    if parameters.get("attention_factor"):
        return float(parameters["attention_factor"])
    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and all_dim:
        return yarn_magnitude(parameters["factor"], mscale) / yarn_magnitude(parameters["factor"], all_dim)
    return None


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _object(config: Config, key: str, found: Any) -> dict[str, Any]:
    config.require(key, isinstance(found, dict), "an object")
    return dict(found)


def _check_number(
    config: Config, parameters: Mapping[str, Any], key: str, low: float = SCALES[0], high: float = SCALES[1]
) -> None:
    if not is_between(parameters.get(key), low, high):
        found = short(parameters.get(key))
        raise InputError(f"{config.file}: rope {key}: found {found}, wanted {describe_range(low, high)}")
