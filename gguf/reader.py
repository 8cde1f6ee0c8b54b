"""GGUF files as sources: mapped, checked once, read where they lie; all shards of a split model are one."""

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lltool.gguf import shards
from lltool.gguf.errors import InputError
from lltool.gguf.header import Header, TensorEntry, parse_header
from lltool.gguf.mapped import LoadMode, MappedFile
from lltool.gguf.metadata import Value
from lltool.gguf.source import Bytes, Tensor


class GGUFFile:
    """An open GGUF model; a `Source`.

    `metadata` is that of the first shard without the `split.*` keys, `tensors` those of all shards in order. Tensors
    and arrays give views of the mapped files; a file is unmapped when it is closed and its last view is gone.
    """

    def __init__(self, path: Path, parts: Sequence["_Part"]) -> None:
        first = parts[0].header
        self.path = path
        self.paths = tuple(part.path for part in parts)
        self.shard_sizes = tuple(len(part.header.tensors) for part in parts)  # tensors
        self.size = sum(len(part.mapped.data) for part in parts)  # bytes, of all shards
        self.version = first.version
        self.alignment = first.alignment
        self.metadata: Mapping[str, Value] = first.metadata
        if len(parts) > 1:
            self.metadata = {key: value for key, value in first.metadata.items() if key not in shards.SPLIT_KEYS}
        self.tensors: Sequence[Tensor] = tuple(_tensor(part, entry) for part in parts for entry in part.header.tensors)
        self._by_name = {tensor.name: tensor for tensor in self.tensors}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name. Raises InputError when there is none."""
        found = self._by_name.get(name)
        if found is None:
            raise InputError(f"{self.path}: has no tensor {name!r}")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def close(self) -> None:
        """Lets go of the files."""
        self.tensors, self.metadata, self._by_name = (), {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_gguf(path: str | Path, mode: LoadMode = "mmap") -> GGUFFile:
    """Opens a GGUF file, and with any shard of a split model the others.

    Raises InputError for what is not a whole, valid file and OSError for one that cannot be read.
    """
    path = Path(path)
    opened = _open_part(path, mode)
    count = shards.shard_count(path, opened.header.metadata)
    if count == 1:
        return GGUFFile(path, [opened])

    parts = []
    for index, shard in enumerate(shards.find_shards(path, count)):
        part = opened if shard == path else _open_part(shard, mode)
        shards.check_shard(shard, part.header.metadata, index, count)
        parts.append(part)
    model = GGUFFile(path, parts)
    shards.check_tensor_count(path, parts[0].header.metadata, len(model.tensors))
    _check_unique_names(parts)
    return model


class _Part:
    """One mapped file."""

    def __init__(self, path: Path, mapped: MappedFile) -> None:
        self.path = path
        self.mapped = mapped
        self.header: Header = parse_header(path, mapped.data.data)


def _open_part(path: Path, mode: LoadMode) -> _Part:
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise InputError(f"{path}: a folder, wanted a GGUF file; `lltool convert` makes one of a checkpoint")
    if not stat.S_ISREG(kind):
        raise InputError(f"{path}: not a regular file, wanted a GGUF file")
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        mapped = MappedFile(file, mode)
    return _Part(path, mapped)


def _tensor(part: _Part, entry: TensorEntry) -> Tensor:
    def read(start: int, stop: int) -> Bytes:
        width = tensor.row_bytes
        return part.mapped.window(entry.offset + start * width, entry.offset + stop * width).reshape(-1, width)

    tensor = Tensor(entry.name, entry.type, entry.shape, read)
    return tensor


def _check_unique_names(parts: Sequence[_Part]) -> None:
    seen: dict[str, Path] = {}
    for part in parts:
        for entry in part.header.tensors:
            if entry.name in seen:
                raise InputError(f"{part.path}: tensor {entry.name!r} is also in {seen[entry.name].name}")
            seen[entry.name] = part.path
