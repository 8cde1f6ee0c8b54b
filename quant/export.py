"""GGUF to a Hugging Face checkpoint: `GGUF source → retype → safetensors`, with its configs and tokenizer."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lltool import __version__
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.families.registry import family_of
from lltool.gguf.families.stored import Stored
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.gguf.safetensors import write_safetensors
from lltool.gguf.source import Tensor
from lltool.gguf.vocabulary_files import StoredVocabulary
from lltool.gguf.writer import DISK_FULL
from lltool.quant.codec import decode, encode
from lltool.quant.retype import retype, retype_tensor

DTYPE_NAMES = ("auto", "f32", "f16", "bf16")
_TORCH_NAMES = {GGMLType.F32: "float32", GGMLType.F16: "float16", GGMLType.BF16: "bfloat16"}
_SHARD_BYTES = 5_000_000_000  # as the Hub has them
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
    """Writes `folder`, which must not exist or be empty, whole or not at all.

    `dtype` is one of DTYPE_NAMES, for the matrices; auto: the file's own, F16 where it is quantized. Vectors have it
    too where that changes no value, else they stay F32. `lltool.json` in the folder says what it was made of.
    """
    if dtype not in DTYPE_NAMES:
        raise InputError(f"dtype {dtype!r}, wanted {', '.join(DTYPE_NAMES)}")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}{_TAKEN}")
    with open_gguf(source) as file:
        type = _matrix_type(file, dtype)
        try:
            config, tensors = _rebuild(file, type, threads)
            vocabulary = StoredVocabulary(file.metadata)
            config |= {f"{kind}_token_id": id for kind, id in vocabulary.special_ids().items() if kind != "unk"}
            ends = vocabulary.end_ids()
            generation = {key: value for key, value in config.items() if key.endswith("_token_id")}
            generation["eos_token_id"] = ends if len(ends) > 1 else generation.get("eos_token_id")
            texts = vocabulary.files(config["max_position_embeddings"])
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
        _write_folder(folder, texts, _split(tensors, shard_bytes), progress)
    return folder


def _matrix_type(file: GGUFFile, dtype: str) -> GGMLType:
    if dtype != "auto":
        return GGMLType[dtype.upper()]
    types = {tensor.type for tensor in file.tensors if len(tensor.shape) > 1}
    return next((type for type in _TORCH_NAMES if types == {type}), GGMLType.F16)


def _rebuild(file: GGUFFile, type: GGMLType, threads: int | None) -> tuple[dict[str, Any], list[Tensor]]:
    """config.json, and the tensors under their checkpoint names."""
    stated = file.metadata.get("general.architecture")
    family = family_of(str(stated.data) if stated else "(none)")
    prefix = f"{family.architecture}."
    keys = {key.removeprefix(prefix): _plain(v) for key, v in file.metadata.items() if key.startswith(prefix)}
    names = frozenset(tensor.name for tensor in file.tensors)
    divisors = None
    if "rope_freqs.weight" in names:
        tensor = file.tensor("rope_freqs.weight")
        divisors = decode(tensor.data(), tensor.type).reshape(-1)
    config = family.restore(Stored(family.architecture, keys, names, divisors))
    config["tie_word_embeddings"] = "output.weight" not in names
    config["vocab_size"] = next((t.rows for t in file.tensors if t.name == "token_embd.weight"), 0)
    config["torch_dtype"] = _TORCH_NAMES[type]
    floats = retype(file, lambda tensor: GGMLType.F32 if len(tensor.shape) == 1 else type, threads)
    tensors = family.to_checkpoint(floats.tensors, config)
    return config, [_shrink(tensor, type) if len(tensor.shape) == 1 else tensor for tensor in tensors]


def _plain(value: Value) -> Any:
    """A number or text as JSON has it; a float32 as the shortest decimal that means it."""
    if value.type == ValueType.FLOAT32:
        return float(str(np.float32(value.data)))
    return value.data.tolist() if isinstance(value.data, np.ndarray) else value.data


def _shrink(tensor: Tensor, type: GGMLType) -> Tensor:
    """A float32 vector as `type`, if nothing is lost."""
    values = decode(tensor.data(), tensor.type)
    exact = np.array_equal(decode(encode(values, type), type), values) if np.abs(values).max() < 65504 else False
    return retype_tensor(tensor, type) if exact else tensor


def _split(tensors: Sequence[Tensor], shard_bytes: int) -> dict[str, list[Tensor]]:
    """Tensors by file name, in order; a file is at most `shard_bytes` unless one tensor is larger."""
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
) -> None:
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    if not folder.parent.is_dir():
        raise InputError(f"{folder.parent}: no such folder; make it first")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        free = shutil.disk_usage(temporary).free
        if free < total:
            raise InputError(f"{folder}: needs {total:,} bytes, the disk has {free:,} left")
        for name, text in texts.items():
            (temporary / name).write_bytes(text)
        for name, shard in shards.items():
            write_safetensors(temporary / name, shard, advance)
        if len(shards) > 1:
            places = {tensor.name: name for name, shard in shards.items() for tensor in shard}
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (temporary / "model.safetensors.index.json").write_bytes(_json(index))
        temporary.replace(folder)
    except OSError as error:
        if error.errno in DISK_FULL:
            message = (
                f"{folder}: the disk is full after {done:,} of {total:,} bytes; free some space or write to another"
            )
            raise InputError(message) from error
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # somebody else was faster
            raise InputError(f"{folder}{_TAKEN}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
