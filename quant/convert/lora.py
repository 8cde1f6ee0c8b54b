"""LoRA adapters as peft saves them, merged into a checkpoint's weights row by row when they are read.

A weight W becomes W + s·B·A, where s is alpha / rank, or alpha / √rank if the adapter is rank-stabilised. With DoRA,
each row of that is then scaled to the adapter's magnitude. Sources: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA),
Liu et al. 2024 (DoRA), and peft's documentation for the names in files.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.hub import download, parse_hub_name
from lltool.gguf.names import describe_missing
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.codec import decode
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.packed.numbers import Floats, floats_in_pieces
from lltool.quant.convert.packed.parts import PlainFile, Unpacked
from lltool.quant.convert.safetensors import SafetensorsFile, open_safetensors
from lltool.quant.convert.torch_bin import TorchFile, open_torch
from lltool.quant.retype import Decoder, retype_tensor

_PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"
_KINDS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", _MAGNITUDE)

# Settings under which W + s·B·A is not what the adapter does.
_OTHER_KINDS = ("layer_replication", "use_qalora", "use_bdlora", "alora_invocation_tokens",
                "trainable_token_indices", "megatron_config", "arrow_config", "kasa_config")  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An open adapter; its changes are multiplied with `scale`."""

    path: Path
    config: Mapping[str, Any]
    file: SafetensorsFile | TorchFile
    scale: float = 1.0

    def factor(self, module: str, rank: int) -> float:
        """s of a module, whose alpha may be its own."""
        alpha = self._of_module("alpha_pattern", module, self.config.get("lora_alpha"))
        if not isinstance(alpha, int | float) or isinstance(alpha, bool):
            raise InputError(f"{self.path / 'adapter_config.json'}: lora_alpha: found {alpha!r}, wanted a number")
        return self.scale * alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def origin(self) -> str:
        """The adapter's name, scale and SHA-256, which a merged file records."""
        return f"{self.path.resolve().name}:{self.scale:g}:{sha256_of([self.file.path])}"

    def _of_module(self, key: str, module: str, default: Any) -> Any:
        """The value of a pattern that fits the end of the module's name, as peft chooses it."""
        patterns = self.config.get(key) or {}
        fits = (value for pattern, value in patterns.items() if re.match(rf"(?:.*\.)?(?:{pattern})$", module))
        return next(fits, default)


def open_adapter(text: str) -> Adapter:
    """Opens `ADAPTER` or `ADAPTER:SCALE`, a folder or an id on the Hub.

    Raises InputError for what is not a LoRA adapter, and for kinds of it whose effect is not that of two factors.
    """
    name, scale = text, 1.0
    found = re.fullmatch(r"(.+):(-?\d+(?:\.\d+)?)", text)
    if found and not Path(text).exists():
        name, scale = found[1], float(found[2])
    path = Path(name)
    if not path.is_dir():
        hub = parse_hub_name(name)
        if path.exists() or hub is None or hub.type or hub.file:
            wanted = "an adapter's folder, or its id on the Hub, ORG/NAME"
            raise InputError(f"{name}: a file, wanted {wanted}" if path.exists() else describe_missing(path, wanted))
        path = download(hub.id, ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
    place = path / "adapter_config.json"
    config = read_json(place)
    if config.get("peft_type") != "LORA":
        raise InputError(f"{place}: peft_type: found {config.get('peft_type')!r}, wanted 'LORA'")
    for key in _OTHER_KINDS:
        if config.get(key):
            raise InputError(f"{place}: {key} is set; such an adapter is merged by peft only (merge_and_unload)")
    for weights, opened in (("adapter_model.safetensors", open_safetensors), ("adapter_model.bin", open_torch)):
        if (path / weights).exists():
            return Adapter(path, config, opened(path / weights), scale)
    raise InputError(f"{path}: has no adapter_model.safetensors and no adapter_model.bin; fetch the adapter again")


def merge_adapters(
    files: Mapping[str, PlainFile], adapters: Sequence[Adapter], type: GGMLType | None
) -> tuple[dict[str, PlainFile], list[str]]:
    """The files of all tensors, with those changed that the adapters change in turn, and notes for the user.

    Changed tensors are given as `type`, or, if it is None, in the types that they had. Raises InputError for adapters
    of another model and for tensors of theirs that have no place.
    """
    merged: dict[str, PlainFile] = dict(files)
    changed: dict[str, Tensor] = {}
    notes = []
    for adapter in adapters:
        if adapter.config.get("target_parameters"):
            place = adapter.path / "adapter_config.json"
            raise InputError(
                f"{place}: target_parameters is set; such an adapter is merged by peft only (merge_and_unload)"
            )
        found = _changes(adapter, merged, changed)
        changed |= found
        with_scale = f" times {adapter.scale:g}" if adapter.scale != 1 else ""
        notes.append(f"{len(found)} tensors are merged with the adapter {adapter.path.name}{with_scale}")
    decoder = Decoder()
    for name, tensor in changed.items():
        file = files[name]
        wanted = type if type is not None else file.tensor(name).type
        merged[name] = Unpacked(file.path, retype_tensor(tensor, wanted, decoder=decoder))
    return merged, notes


def _changes(adapter: Adapter, files: Mapping[str, PlainFile], changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that an adapter changes, float32, by the checkpoint's names."""
    modules: dict[str, dict[str, str]] = {}  # the names of the parts by kind, by module
    found: dict[str, Tensor] = {}
    for name in adapter.file.names:
        plain = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if plain.endswith(f".{_MAGNITUDE}.weight"):  # older releases of peft leave out .weight
            plain = plain.removesuffix(".weight")
        kind = next((kind for kind in _KINDS if plain.endswith(f".{kind}")), None)
        if kind:
            modules.setdefault(plain.removesuffix(f".{kind}"), {})[kind] = name
            continue
        if plain not in files or files[plain].shape(plain) != adapter.file.shape(name):
            raise InputError(f"{adapter.file.path}: {name}: has no place in the checkpoint; is this its adapter?")
        found[plain] = _floats(adapter.file.tensor(name))  # trained or saved whole, as output matrices often are
    for module, parts in modules.items():
        target = f"{module}.weight"
        if target not in files:
            raise InputError(f"{adapter.file.path}: {module}: the checkpoint has no {target}; is this its adapter?")
        base = found.get(target) or changed.get(target) or _floats(files[target].tensor(target))
        found[target] = _merge(adapter, module, parts, base)
    return found


def _merge(adapter: Adapter, module: str, parts: Mapping[str, str], base: Tensor) -> Tensor:
    is_embedding = "lora_embedding_A" in parts
    first, second = (f"lora_embedding_{x}" if is_embedding else f"lora_{x}.weight" for x in "AB")
    if first not in parts or second not in parts:
        raise InputError(f"{adapter.file.path}: {module}: has only one of the two matrices; the file is damaged")
    down, up = (values_of(adapter, parts[kind]) for kind in (first, second))  # A (rank, inputs), B (outputs, rank)
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise InputError(f"{adapter.file.path}: {module}: shapes {down.shape} and {up.shape} do not fit together")
    left, right = (down.T, up.T) if is_embedding or adapter.config.get("fan_in_fan_out") else (up, down)
    if (len(left), right.shape[1]) != base.shape:
        raise InputError(
            f"{adapter.file.path}: {module}: changes a matrix of {(len(left), right.shape[1])}, but the checkpoint's "
            f"is {base.shape}; is this its adapter?"
        )
    left = np.ascontiguousarray(left * np.float32(adapter.factor(module, len(down))))
    magnitude = None
    if name := parts.get(_MAGNITUDE):
        magnitude = values_of(adapter, name).reshape(-1)
        if is_embedding or adapter.config.get("fan_in_fan_out") or len(magnitude) != len(left):
            raise InputError(f"{adapter.file.path}: {module}: DoRA of such a module is merged by peft only")

    def read(start: int, stop: int) -> Floats:
        rows: Floats = decode(base.read(start, stop), GGMLType.F32) + left[start:stop] @ right
        if magnitude is not None:
            rows *= (magnitude[start:stop] / np.linalg.norm(rows, axis=1))[:, None]
        return rows

    return floats_in_pieces(base.name, base.shape, read)


def values_of(adapter: Adapter, name: str) -> Floats:
    """A tensor of the adapter as float32. Raises InputError for NaN and infinity."""
    tensor = adapter.file.tensor(name)
    values: Floats = decode(tensor.data(), tensor.type).reshape(tensor.shape)
    if not np.isfinite(values).all():
        raise InputError(f"{adapter.file.path}: {name}: holds NaN or infinity; the adapter is damaged")
    return values


def _floats(tensor: Tensor) -> Tensor:
    """The tensor as float32, whatever float type it has; NaN stays, for what reads it to refuse."""

    def read(start: int, stop: int) -> Bytes:
        return decode(tensor.read(start, stop), tensor.type).view(np.uint8)

    return tensor if tensor.type == GGMLType.F32 else Tensor(tensor.name, GGMLType.F32, tensor.shape, read)
