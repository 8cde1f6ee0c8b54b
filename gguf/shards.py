"""Models split over several files, as llama.cpp splits them: names, `split.*` keys, which tensor goes where."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import INTEGERS, Value, ValueType
from lltool.gguf.source import Tensor

SPLIT_NO = "split.no"  # counts from 0; the names count from 1
SPLIT_COUNT = "split.count"
SPLIT_TENSORS = "split.tensors.count"  # of all shards together
SPLIT_KEYS = frozenset({SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS})
MAX_SHARDS = 0xFFFF  # split.count is a u16

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def shard_path(path: Path, index: int, count: int) -> Path:
    """The name of shard `index` (from 0) of the model named `path`: `model-00001-of-00003.gguf`."""
    match = _NAME.fullmatch(path.name)
    stem = match[1] if match else path.name.removesuffix(".gguf")
    return path.with_name(f"{stem}-{index + 1:05d}-of-{count:05d}.gguf")


def split_keys(index: int, count: int, tensors: int) -> dict[str, Value]:
    """The keys that mark a file as a shard, in llama.cpp's types."""
    return {
        SPLIT_NO: Value(ValueType.UINT16, index),
        SPLIT_COUNT: Value(ValueType.UINT16, count),
        SPLIT_TENSORS: Value(ValueType.INT32, tensors),
    }


def shard_count(path: Path, metadata: Mapping[str, Value]) -> int:
    """How many files the model has; a merged model says 0, a plain one nothing."""
    return max(1, _read_count(path, metadata, SPLIT_COUNT, 1))


def find_shards(path: Path, count: int) -> list[Path]:
    """All files of the model that `path` is one shard of, in order. Raises InputError when one is missing."""
    match = _NAME.fullmatch(path.name)
    if not match or int(match[3]) != count:
        example = shard_path(path, 0, count).name
        raise InputError(f"{path}: one of {count} shards, but not named like one; rename them all as in {example}")
    paths = [shard_path(path, index, count) for index in range(count)]
    missing = [shard.name for shard in paths if not shard.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{path}: {len(missing)} of {count} shards are missing beside it: {', '.join(missing[:3])}{more}"
        )
    return paths


def check_shard(path: Path, metadata: Mapping[str, Value], index: int, count: int) -> None:
    """Raises InputError unless the file at `path` says that it is shard `index` of `count`."""
    found = _read_count(path, metadata, SPLIT_NO, -1), _read_count(path, metadata, SPLIT_COUNT, -1)
    if found != (index, count):
        raise InputError(
            f"{path}: {SPLIT_NO} and {SPLIT_COUNT} are {found[0]} and {found[1]}, wanted {index} and {count}; "
            f"the shards are misnamed or of different models"
        )


def check_tensor_count(path: Path, metadata: Mapping[str, Value], found: int) -> None:
    """Raises InputError unless all shards together have the tensors that `metadata` announces."""
    wanted = _read_count(path, metadata, SPLIT_TENSORS, found)
    if wanted != found:
        raise InputError(f"{path}: the shards have {found} tensors together, {SPLIT_TENSORS} says {wanted}")


def plan_shards(tensors: Sequence[Tensor], max_bytes: int | None, max_tensors: int | None) -> list[list[Tensor]]:
    """Cuts the tensors, in order, into shards of at most `max_bytes` of tensor data and `max_tensors` tensors.

    A tensor larger than `max_bytes` gets a shard of its own. Always at least one shard.
    """
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        full = max_tensors is not None and len(shards[-1]) >= max_tensors
        if shards[-1] and (full or (max_bytes is not None and filled + tensor.nbytes > max_bytes)):
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def cut_shards(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """Cuts the tensors into shards of so many tensors each; none is empty."""
    assert sum(sizes) == len(tensors), (sizes, len(tensors))
    rest = iter(tensors)
    return [list(islice(rest, size)) for size in sizes if size] or [[]]


def _read_count(path: Path, metadata: Mapping[str, Value], key: str, default: int) -> int:
    value = metadata.get(key)
    if value is None:
        return default
    if value.type not in INTEGERS or not 0 <= value.data < 1 << 31:
        raise InputError(f"{path}: {key} is {value.data!r} ({value.type.name}), wanted a small integer")
    return int(value.data)
