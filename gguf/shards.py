"""Models split into several files as llama.cpp splits them: file names, `split.*` keys, the tensors of each shard."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import INTEGERS, Value, ValueType
from lltool.gguf.source import Tensor

SPLIT_NO = "split.no"  # counts from 0, whereas file names count from 1
SPLIT_COUNT = "split.count"
SPLIT_TENSORS = "split.tensors.count"  # the sum over all shards
SPLIT_KEYS = frozenset({SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS})
MAX_SHARDS = 0xFFFF  # split.count is a u16

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def shard_path(path: Path, index: int, count: int) -> Path:
    """The name of shard `index` (from 0) of the model named `path`: `model-00001-of-00003.gguf`."""
    match = _NAME.fullmatch(path.name)
    stem = match[1] if match else path.name.removesuffix(".gguf")
    return path.with_name(f"{stem}-{index + 1:05d}-of-{count:05d}.gguf")


def named_place(name: str) -> tuple[int, int]:
    """The index (from 0) and the number of shards that a file's name states; (0, 1) for a name that is no shard's."""
    match = _NAME.fullmatch(name)
    return (int(match[2]) - 1, int(match[3])) if match else (0, 1)


def split_keys(index: int, count: int, tensors: int) -> dict[str, Value]:
    """The keys that mark a file as a shard, with llama.cpp's value types."""
    return {
        SPLIT_NO: Value(ValueType.UINT16, index),
        SPLIT_COUNT: Value(ValueType.UINT16, count),
        SPLIT_TENSORS: Value(ValueType.INT32, tensors),
    }


def shard_count(path: Path, metadata: Mapping[str, Value]) -> int:
    """The number of files of the model: 1 for a merged model, whose key is 0, and for one without the key."""
    return max(1, _read_count(path, metadata, SPLIT_COUNT, 1))


def find_shards(path: Path, count: int) -> list[Path]:
    """All files of the model that the shard `path` belongs to, in order. Raises InputError if one is missing."""
    match = _NAME.fullmatch(path.name)
    if not match or int(match[3]) != count:
        example = shard_path(path, 0, count).name
        raise InputError(f"{path}: is one of {count} shards but not named like one; rename them all as in {example}")
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
            f"the shards are misnamed or belong to different models"
        )


def check_tensor_count(path: Path, metadata: Mapping[str, Value], found: int) -> None:
    """Raises InputError unless all shards together have the number of tensors that `metadata` states."""
    wanted = _read_count(path, metadata, SPLIT_TENSORS, found)
    if wanted != found:
        raise InputError(f"{path}: the shards have {found} tensors together, but {SPLIT_TENSORS} is {wanted}")


def plan_shards(tensors: Sequence[Tensor], max_bytes: int | None, max_tensors: int | None) -> list[list[Tensor]]:
    """Cuts the tensors, in order, into shards of at most `max_bytes` of tensor data and `max_tensors` tensors.

    A tensor larger than `max_bytes` gets its own shard. There is always at least one shard.
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
    """Cuts the tensors into shards of `sizes` tensors each; sizes of 0 are skipped."""
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
