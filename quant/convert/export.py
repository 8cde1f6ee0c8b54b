"""Exports a GGUF file as a Hugging Face checkpoint with configs and tokenizer: `GGUF → retype → safetensors`."""

import errno
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lltool import __version__
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.gguf.source import Tensor
from lltool.gguf.whole_file import DISK_FULL, check_folder, move_into_place, scratch_folder
from lltool.quant.codec import decode, encode
from lltool.quant.convert.families.family import DERIVED, EMBEDDING, Family
from lltool.quant.convert.families.registry import family_of
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.safetensors import write_safetensors
from lltool.quant.convert.sampling_keys import sampling_fields
from lltool.quant.convert.vocabulary_files import StoredVocabulary
from lltool.quant.retype import retype, retype_tensor

DTYPE_NAMES = ("auto", "f32", "f16", "bf16")
_TORCH_NAMES = {GGMLType.F32: "float32", GGMLType.F16: "float16", GGMLType.BF16: "bfloat16"}
_SHARD_BYTES = 5_000_000_000  # the usual size on the Hub
_TAKEN = ": exists and is not an empty folder; name another"


def export(
    source: str | Path,
    folder: str | Path,
    dtype: str = "auto",
    *,
    threads: int | None = None,
    shard_bytes: int = _SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the checkpoint to `folder`, which must be empty or not exist; it appears complete or not at all.

    `dtype`, one of DTYPE_NAMES, is the type of matrices; auto is the file's own type, or F16 if it is quantized.
    Vectors get that type if it changes no value, else they stay F32. `lltool.json` in the folder records the source.
    Raises InputError for a file or folder that cannot be used and for a full disk.
    """
    if dtype not in DTYPE_NAMES:
        raise InputError(f"dtype {dtype!r}, wanted {', '.join(DTYPE_NAMES)}")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}{_TAKEN}")
    with open_gguf(source) as file:
        type = _matrix_type(file, dtype)
        try:
            family, config, tensors = _rebuild(file, type, threads)
            vocabulary = StoredVocabulary(file.metadata)
            config |= {f"{kind}_token_id": id for kind, id in vocabulary.special_ids().items() if kind != "unk"}
            ends = vocabulary.end_ids()
            generation = {key: value for key, value in config.items() if key.endswith("_token_id")}
            generation["eos_token_id"] = ends if len(ends) > 1 else generation.get("eos_token_id")
            generation |= sampling_fields(file.metadata)
            texts = vocabulary.files(config["max_position_embeddings"])
            config = family.spell(config)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        made = {
            "lltool.version": __version__,
            "lltool.export.source": file.path.name,
            "lltool.export.source_sha256": sha256_of(file.paths),
            "lltool.export.dtype": _TORCH_NAMES[type],
        }
        objects = {"config.json": config, "generation_config.json": generation, "lltool.json": made}
        texts |= {name: _json(value) for name, value in objects.items()}
        _write_folder(folder, texts, _split(tensors, shard_bytes), progress, file.check_unchanged)
    return folder


def _matrix_type(file: GGUFFile, dtype: str) -> GGMLType:
    if dtype != "auto":
        return GGMLType[dtype.upper()]
    types = {tensor.type for tensor in file.tensors if len(tensor.shape) > 1}
    return next((type for type in _TORCH_NAMES if types == {type}), GGMLType.F16)


def _rebuild(file: GGUFFile, type: GGMLType, threads: int | None) -> tuple[Family, dict[str, Any], list[Tensor]]:
    """The family, its config under the tables' names of keys, and the tensors under their checkpoint names."""
    stated = file.metadata.get("general.architecture")
    architecture = str(stated.data) if stated else "(none)"
    prefix = f"{architecture}."
    keys = {
        key.removeprefix(prefix): _plain(value)
        for key, value in file.metadata.items()
        if not key.startswith(("general.", "tokenizer.", "split.", "lltool."))
    }
    names = frozenset(tensor.name for tensor in file.tensors)
    constants = {
        name: decode(file.tensor(name).data(), file.tensor(name).type).reshape(-1) for name in DERIVED if name in names
    }
    stored = Stored(architecture, keys, names, constants, {tensor.name: tensor.shape for tensor in file.tensors})
    family = family_of(stored)
    config = family.restore(stored)
    config["vocab_size"] = next((t.rows for t in file.tensors if t.name == EMBEDDING), 0)
    config["torch_dtype"] = _TORCH_NAMES[type]
    floats = retype(file, lambda tensor: GGMLType.F32 if len(tensor.shape) == 1 else type, threads)
    tensors = [_shrink(t, type) if len(t.shape) == 1 else t for t in family.to_checkpoint(floats.tensors, config)]
    return family, config, tensors


def _plain(value: Value) -> Any:
    """A metadata value for JSON; a float32 becomes the shortest decimal that rounds to it."""
    if value.type == ValueType.FLOAT32:
        return float(str(np.float32(value.data)))
    return value.data.tolist() if isinstance(value.data, np.ndarray) else value.data


def _shrink(tensor: Tensor, type: GGMLType) -> Tensor:
    """A float32 vector as `type` if no value changes, else unchanged."""
    values = decode(tensor.data(), tensor.type)
    exact = np.array_equal(decode(encode(values, type), type), values) if np.abs(values).max() < 65504 else False
    return retype_tensor(tensor, type) if exact else tensor


def _split(tensors: Sequence[Tensor], shard_bytes: int) -> dict[str, list[Tensor]]:
    """The tensors by file name, in order; a file has at most `shard_bytes` unless a single tensor is larger."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{n:05}-of-{len(shards):05}.safetensors": shard for n, shard in enumerate(shards, 1)}


def _write_folder(
    folder: Path,
    texts: Mapping[str, bytes],
    shards: Mapping[str, list[Tensor]],
    progress: Callable[[int, int], None] | None,
    check: Callable[[], None],
) -> None:
    """Writes texts and shards to `folder`; an exception from `check`, which is called last, discards it."""
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    check_folder(folder.absolute().parent)
    target = folder.resolve()
    with scratch_folder(target.parent, folder) as scratch:
        temporary = scratch / "folder"
        temporary.mkdir()
        free = shutil.disk_usage(temporary).free
        if free < total:
            raise InputError(f"{folder}: needs {total:,} bytes, but the disk has only {free:,} left")
        try:
            for name, text in texts.items():
                (temporary / name).write_bytes(text)
            for name, shard in shards.items():
                write_safetensors(temporary / name, shard, advance)
            if len(shards) > 1:
                places = {tensor.name: name for name, shard in shards.items() for tensor in shard}
                index = {"metadata": {"total_size": total}, "weight_map": places}
                (temporary / "model.safetensors.index.json").write_bytes(_json(index))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise InputError(
                f"{folder}: {DISK_FULL[error.errno]} after {done:,} of {total:,} bytes; "
                f"free some space or write to another folder"
            ) from error
        check()
        try:
            move_into_place(temporary, folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # another process created it meanwhile
                raise InputError(f"{folder}{_TAKEN}") from error
            raise


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
