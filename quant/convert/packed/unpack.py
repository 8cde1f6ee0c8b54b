"""Presents the weights of packed checkpoints, whose config.json has a quantization_config, as plain tensors by name.

A packing takes the stored parts of each weight and gives a tensor that makes rows from them when they are read. Its
type is float32, or a type of GGUF whose grid holds the same values.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any, Protocol

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.convert.packed import awq, bitnet, bitsandbytes, compressed_tensors, fp8, gptq, hqq, modelopt, mxfp4
from lltool.quant.convert.packed.parts import Parts, PlainFile, RawFile, Settings, Unpacked
from lltool.quant.retype import Decoder, retype_tensor

Packing = Callable[[Parts, Settings], Iterator[Unpacked]]

PACKINGS: dict[str, Packing] = {
    "fp8": fp8.unpack,
    "fbgemm_fp8": fp8.unpack,
    "mxfp4": mxfp4.unpack,
    "gptq": gptq.unpack,
    "awq": awq.unpack,
    "compressed-tensors": compressed_tensors.unpack,
    "modelopt": modelopt.unpack,
    "bitsandbytes": bitsandbytes.unpack,
    "bitnet": bitnet.unpack,
    "hqq": hqq.unpack,
}
"""The packings by the quant_method of a config.json."""

# What follows the names of modules in those of scales for activations and the cache, which float arithmetic needs not.
_NOT_FOR_WEIGHTS = (
    ".input_scale",
    ".input_scale_ub",
    ".input_global_scale",
    ".input_zero_point",
    ".activation_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".kv_scale",
)


class StoredFile(PlainFile, RawFile, Protocol):
    """A file as it is stored."""

    def is_plain(self, name: str) -> bool: ...


def read_settings(config: Mapping[str, Any], file: Path, beside: Mapping[str, Any]) -> Settings | None:
    """The quantization_config of a config.json, or else `beside`, the content of hf_quant_config.json; None without.

    Raises InputError if it is no object.
    """
    text = config.get("text_config")
    places = [("", config), *([("text_config.", text)] if isinstance(text, dict) else [])]
    for prefix, values in places:
        for key in ("quantization_config", "compression_config"):
            if found := values.get(key):
                if not isinstance(found, dict):
                    raise InputError(f"{file}: {prefix}{key}: found {short(found)}, wanted an object")
                return Settings(file, prefix + key, found)
    if isinstance(stated := beside.get("quantization"), dict):
        return Settings(file.parent / "hf_quant_config.json", "quantization", {"quant_method": "modelopt", **stated})
    return None


def unpack(
    files: Mapping[str, StoredFile], settings: Settings, type: GGMLType
) -> tuple[dict[str, PlainFile], list[str]]:
    """The files of all tensors with packed ones replaced by plain ones, and notes for the user.

    Weights that are made as float32 are given as `type`. Raises InputError for a method that is not known and for
    parts that are missing or do not fit.
    """
    method = _method(settings)
    if all(file.is_plain(name) for name, file in files.items()):
        note = f"config.json says that weights are quantized ({method!r}), but all are plain floats; used as such"
        return dict(files), [note]
    if method not in PACKINGS:
        raise InputError(
            f"{settings.file}: {settings.key}.quant_method: found {method!r}; this version reads "
            f"{', '.join(PACKINGS)}; use the 16-bit checkpoint, or save the dequantized model with transformers"
        )
    parts = Parts(files)
    decoder = Decoder()  # one for all, because each keeps the last rows
    made: dict[str, Unpacked] = {}
    for file in PACKINGS[method](parts, settings):
        weight = file.weight
        if weight.name in made or weight.name in parts:
            raise InputError(f"{file.path}: {weight.name}: is stored both packed and plain; remove one")
        if not file.is_exact:
            file = Unpacked(file.path, retype_tensor(weight, type, decoder=decoder))
        made[weight.name] = file
    if not made:
        name = next(name for name, file in files.items() if not file.is_plain(name))
        raise InputError(
            f"{files[name].path}: {name}: is no plain float, nor packed as {settings.key} of config.json says "
            f"({method!r}); wanted parts of that packing, or plain floats"
        )
    all_exact = all(file.is_exact for file in made.values())
    notes = [f"{len(made)} weights are packed ({method})" + ("" if all_exact else "; they are unpacked on the way")]
    if dropped := parts.drop(_NOT_FOR_WEIGHTS):
        notes.append(f"{dropped} scales of activations and of the cache are left out")
    left = {name: file for name, file in files.items() if name not in parts.taken}
    return {**left, **made}, notes


def _method(settings: Settings) -> str:
    found = settings.values.get("quant_method")
    if found is None and (settings.values.get("load_in_4bit") or settings.values.get("load_in_8bit")):
        return "bitsandbytes"
    if not isinstance(found, str):
        settings.require("quant_method", False, f"one of {', '.join(PACKINGS)}")
    return str(found).lower()
