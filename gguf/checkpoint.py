"""Hugging Face checkpoints: a folder, or an id on the Hub, as a config and lazy tensors by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.safetensors import SafetensorsFile, open_safetensors
from lltool.gguf.source import Tensor
from lltool.gguf.torch_bin import TorchFile, open_torch

_SMALL_FILES = ("*.json", "tokenizer.model", "*.jinja")


@dataclass(frozen=True)
class Checkpoint:
    """`files` says which file holds a tensor. `name` is the folder's, or the id on the Hub."""

    path: Path
    name: str
    config: Mapping[str, Any]
    files: Mapping[str, SafetensorsFile | TorchFile]

    @property
    def inputs(self) -> list[Path]:
        """The files that it consists of, as far as they are read."""
        weights = {file.path for file in self.files.values()}
        return sorted(weights.union(*(self.path.rglob(pattern) for pattern in _SMALL_FILES)))

    @property
    def revision(self) -> str | None:
        """The commit of a checkpoint from the Hub."""
        return self.path.name if self.path.parent.name == "snapshots" else None

    def tensor(self, name: str) -> Tensor:
        return self.files[name].tensor(name)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens a folder, or what `ORGANIZATION/NAME` is on the Hub (kept in huggingface_hub's cache).

    Raises InputError where there is no such thing, a file is missing or damaged, or the weights are quantized.
    """
    path = Path(source)
    if not path.is_dir():
        if path.exists():
            raise InputError(f"{path}: a file; wanted a checkpoint's folder or an id on the Hub")
        if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
            raise InputError(f"{path}: no such folder")
        path = _download(str(source))
        return _open_folder(path, str(source))
    return _open_folder(path, path.resolve().name)


def _open_folder(path: Path, name: str) -> Checkpoint:
    config = read_json(path / "config.json")
    quantization = config.get("quantization_config") or config.get("compression_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise InputError(f"{path}: weights are quantized ({method}), not supported yet; take the 16-bit checkpoint")
    for stem, suffix, opener in (("model", "safetensors", open_safetensors), ("pytorch_model", "bin", open_torch)):
        single, index = path / f"{stem}.{suffix}", path / f"{stem}.{suffix}.index.json"
        if index.exists():
            return Checkpoint(path, name, config, _open_shards(index, opener))
        if single.exists():
            file = opener(single)
            return Checkpoint(path, name, config, dict.fromkeys(file.entries, file))
    raise InputError(f"{path}: no weights: wanted model.safetensors, pytorch_model.bin, or an index of shards of them")


def _open_shards(index: Path, opener: Any) -> dict[str, SafetensorsFile | TorchFile]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(f"{index}: wanted weight_map, from tensor names to files")
    shards = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise InputError(f"{index}: shard {shard!r}, wanted a file name without folders")
        shards[shard] = opener(index.parent / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard].entries:
            raise InputError(f"{index}: {name}: is not in {shard}, where the index has it")
    return {name: shards[shard] for name, shard in weight_map.items()}


def _download(id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    skip = ["consolidated*", "original/*", "onnx/*", "openvino/*"]
    try:
        path = Path(snapshot_download(id, allow_patterns=[*_SMALL_FILES, "model*.safetensors"], ignore_patterns=skip))
        if not any(path.glob("model*.safetensors")):
            path = Path(snapshot_download(id, allow_patterns=[*_SMALL_FILES, "pytorch_model*.bin"]))
    except LocalEntryNotFoundError:
        raise InputError(f"{id}: no such folder; not in the Hub's cache either, and the Hub was not reached") from None
    except (OSError, HFValidationError) as error:  # the Hub's own errors are OSErrors
        raise InputError(f"{id}: no such folder, and the Hub says: {str(error).splitlines()[0]}") from None
    return path


def read_json(path: Path, missing: Any = None) -> dict[str, Any]:
    """The JSON object in a file; `missing`, if given, where there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return dict(missing)
        raise InputError(f"{path}: missing; is this a Hugging Face checkpoint's folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a JSON {type(value).__name__}, wanted an object")
    return value
