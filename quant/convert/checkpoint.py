"""Hugging Face checkpoints, from a folder or by an id on the Hub: the config and lazy tensors by name."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.hub import download, open_remote, parse_hub_name
from lltool.gguf.mapped import Windows
from lltool.gguf.names import describe_missing, describe_os_error
from lltool.gguf.regular_file import read_bytes
from lltool.gguf.remote import Chunks, RemoteFile
from lltool.gguf.source import Tensor
from lltool.quant.convert.packed.parts import PlainFile
from lltool.quant.convert.packed.unpack import read_settings, unpack
from lltool.quant.convert.safetensors import SafetensorsFile, open_safetensors, read_safetensors
from lltool.quant.convert.torch_bin import TorchFile, open_torch
from lltool.quant.convert.wrong_content import MERGE_IT, explain_content, explain_folder

_SMALL_FILES = ("*.json", "tokenizer.model", "merges.txt", "*.jinja", "README.md")


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint. `files` gives each tensor's file, `name` is the folder's or the id, `notes` are for users.

    Packed weights are in `files` as plain tensors; `stored` are the files that are read, and `remote` their content if
    they are on a server.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    files: Mapping[str, PlainFile]
    stored: Sequence[SafetensorsFile | TorchFile]
    notes: Sequence[str] = ()
    remote: Sequence[RemoteFile] = ()

    @property
    def inputs(self) -> list[Path]:
        """The files of the checkpoint that are read."""
        return sorted(set(self.weights).union(*(self.path.rglob(pattern) for pattern in _SMALL_FILES)))

    @property
    def weights(self) -> list[Path]:
        """The files of weights on this machine."""
        return [] if self.remote else sorted({file.path for file in self.stored})

    def digest(self, stop: Event | None = None) -> str:
        """The digest of the weights as `sha256_of` gives it; of remote ones, from the digests that the server states.

        Where it states another ETag than a SHA-256, the digest of that stands for it.
        """
        if not self.remote:
            return sha256_of(self.weights, stop)
        etags = [file.etag for file in sorted(self.remote, key=lambda file: file.name)]
        parts = [tag if re.fullmatch("[0-9a-f]{64}", tag) else sha256(tag.encode()).hexdigest() for tag in etags]
        return parts[0] if len(parts) == 1 else sha256("".join(parts).encode()).hexdigest()

    @property
    def is_packed(self) -> bool:
        """Whether weights are unpacked on the way, to the type that `open_checkpoint` got."""
        stored = {id(file) for file in self.stored}
        return any(id(file) not in stored for file in self.files.values())

    @property
    def revision(self) -> str | None:
        """The commit of a checkpoint from the Hub, else None."""
        return self.path.name if self.path.parent.name == "snapshots" else None

    def tensor(self, name: str) -> Tensor:
        return self.files[name].tensor(name)

    def check_unchanged(self) -> None:
        """Raises FileChanged if the weights were written to since they were opened."""
        for file in self.stored:
            file.check_unchanged()


def open_checkpoint(
    source: str | Path, unpacked: GGMLType | None = GGMLType.F32, *, remote: bool = False
) -> Checkpoint:
    """Opens a folder, or `ORGANIZATION/NAME` on the Hub, which is downloaded to huggingface_hub's cache.

    With `remote`, its weights stay on the Hub and are read in ranges. Packed weights are given as `unpacked`, or, if it
    is None, in the type that config.json states for the model. Raises InputError if it does not exist, if a file is
    missing or damaged, or if weights are packed in an unknown way.
    """
    path = Path(source)
    if not path.is_dir():
        if path.exists():
            raise InputError(f"{path}: a file; wanted a checkpoint's folder or an id on the Hub")
        hub = parse_hub_name(str(source))
        if hub is None:
            raise InputError(describe_missing(path, "a checkpoint's folder, or its id on the Hub, ORG/NAME"))
        if hub.type or hub.file:
            raise InputError(f"{source}: a GGUF model on the Hub, wanted a checkpoint: its folder or ORGANIZATION/NAME")
        if remote:
            return _open_folder(download(hub.id, _SMALL_FILES), hub.id, unpacked, remote=True)
        return _open_folder(_download(hub.id), hub.id, unpacked)
    if remote:
        raise InputError(f"{path}: a folder on this machine; --remote is for an id on the Hub")
    return _open_folder(path, path.resolve().name, unpacked)


def _open_folder(path: Path, name: str, unpacked: GGMLType | None, *, remote: bool = False) -> Checkpoint:
    if not (path / "config.json").exists() and (reason := explain_folder(path)):
        raise InputError(f"{path}: {reason}")
    config = read_json(path / "config.json")
    contents: list[RemoteFile] = []
    stored = _open_remote_weights(path, name, contents) if remote else _open_weights(path)
    files: Mapping[str, PlainFile] = stored
    notes: list[str] = []
    beside = read_json(path / "hf_quant_config.json", {})
    if settings := read_settings(config, path / "config.json", beside):
        files, notes = unpack(stored, settings, _stated_type(config) if unpacked is None else unpacked)
    if (path / "adapter_config.json").exists():
        notes.append(f"the adapter beside the weights (adapter_config.json) is left out; to include it, {MERGE_IT}")
    unique = list({id(file): file for file in stored.values()}.values())
    return Checkpoint(path, name, config, files, unique, notes, contents)


def _stated_type(config: Mapping[str, Any]) -> GGMLType:
    """The model's type; bfloat16 if the config does not say a type of 16 or 32 bits."""
    text = config.get("text_config")
    places = (config, text) if isinstance(text, dict) else (config,)
    stated = [place.get(key) for place in places for key in ("dtype", "torch_dtype")]
    found = next((str(type).removeprefix("torch.") for type in stated if type), "")
    return {"float16": GGMLType.F16, "float32": GGMLType.F32}.get(found, GGMLType.BF16)


def _open_weights(path: Path) -> dict[str, SafetensorsFile | TorchFile]:
    """The file of each tensor, from the files that transformers would choose."""
    open_mapped = partial(open_safetensors, windows=Windows())
    for stem, suffix, opener in (("model", "safetensors", open_mapped), ("pytorch_model", "bin", open_torch)):
        single, index = path / f"{stem}.{suffix}", path / f"{stem}.{suffix}.index.json"
        if single.exists():
            file: SafetensorsFile | TorchFile = opener(single)
            return dict.fromkeys(file.names, file)
        if index.exists():
            return _open_shards(index, opener)
    if reason := explain_folder(path):
        raise InputError(f"{path}: {reason}")
    raise InputError(f"{path}: no weights: wanted model.safetensors, pytorch_model.bin, or an index of their shards")


def _open_remote_weights(path: Path, id: str, contents: list[RemoteFile]) -> dict[str, SafetensorsFile | TorchFile]:
    """The file of each tensor on the Hub; `path` has the small files of one revision. `contents` gets the files."""
    chunks = Chunks()

    def open_one(shard: Path) -> SafetensorsFile:
        contents.append(open_remote(id, path.name, shard.name, chunks))
        return read_safetensors(Path(id) / shard.name, contents[-1])

    index = path / "model.safetensors.index.json"
    if index.exists():
        return _open_shards(index, open_one, is_remote=True)
    file = open_one(path / "model.safetensors")
    return dict.fromkeys(file.names, file)


def _open_shards(index: Path, opener: Any, *, is_remote: bool = False) -> dict[str, SafetensorsFile | TorchFile]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(f"{index}: wanted weight_map, from tensor names to files")
    names = sorted(set(weight_map.values()))
    for shard in names:
        if Path(shard).name != shard or "\0" in shard:
            raise InputError(f"{index}: shard {shard!r}, wanted a file name without folders")
    if missing := [shard for shard in names if not (is_remote or (index.parent / shard).exists())]:
        raise InputError(
            f"{index.parent / missing[0]}: missing; {len(missing)} of the {len(names)} shards in {index.name} "
            f"do not exist; download them"
        )
    shards = {shard: opener(index.parent / shard) for shard in names}
    for name, shard in weight_map.items():
        if name not in shards[shard].names:
            raise InputError(f"{index}: {name}: is not in {shard}, where the index places it")
    files = {name: shards[shard] for name, shard in weight_map.items()}
    for file in shards.values():
        for alias in file.aliases:
            files.setdefault(alias, file)
    return files


def _download(id: str) -> Path:
    skip = ["consolidated*", "original/*", "onnx/*", "openvino/*"]
    path = download(id, [*_SMALL_FILES, "model*.safetensors", "*_Dense/model.safetensors"], ignore=skip)
    if not any(path.glob("model*.safetensors")):
        path = download(id, [*_SMALL_FILES, "pytorch_model*.bin"])
    return path


def read_json(path: Path, missing: Any = None) -> dict[str, Any]:
    """The JSON object in a file, or `missing`, if given, when the file does not exist. A byte order mark is dropped.

    Raises InputError for a file that cannot be read or is not a JSON object.
    """
    value = _read_value(path, missing is not None)
    if value is None:
        return dict(missing)
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a JSON {type(value).__name__}, wanted an object")
    return value


def read_json_list(path: Path) -> list[Any]:
    """The JSON list in a file, which is empty if the file does not exist. Raises InputError as `read_json` does."""
    value = _read_value(path, True)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"{path}: found a JSON {type(value).__name__}, wanted a list")
    return value


def _read_value(path: Path, may_be_missing: bool) -> Any:
    """The JSON value in a file; None if the file may be missing and is."""
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        if may_be_missing:
            return None
        raise InputError(f"{path}: missing; is this a Hugging Face checkpoint's folder?") from None
    except OSError as error:
        raise InputError(describe_os_error(error, path)) from None
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = explain_content(data)
        raise InputError(f"{path}: {reason}" if reason else f"{path}: cannot be read as JSON: {error}") from None
