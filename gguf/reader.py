"""GGUF files as sources: they are mapped and checked once, and the shards of a split model are read as one model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from lltool.gguf import shards
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import row_bytes
from lltool.gguf.header import Header, TensorEntry, parse_header
from lltool.gguf.mapped import LoadMode, MappedFile, Windows, prefetch
from lltool.gguf.metadata import Value
from lltool.gguf.regular_file import open_regular
from lltool.gguf.source import Bytes, Tensor


class GGUFFile:
    """An open GGUF model; a `Source`.

    `metadata` is the first shard's without the `split.*` keys; `tensors` are those of all shards in order. Tensors and
    arrays are views of the mapped files; a file is unmapped when it is closed and its last view is gone. Used in a
    `with` statement, it raises FileChanged on exit if another process has written to the files.
    """

    def __init__(self, path: Path, files: Sequence["Shard"]) -> None:
        first = files[0].header
        self._files = [file.mapped for file in files]
        self._prefetching: list[Event] = []
        self.path = path
        self.paths = tuple(file.path for file in files)
        self.shard_sizes = tuple(len(file.header.tensors) for file in files)  # tensors
        self.size = sum(len(file.mapped.data) for file in files)  # bytes, of all shards
        self.version = first.version
        self.alignment = first.alignment
        self.metadata: Mapping[str, Value] = first.metadata
        if len(files) > 1:
            self.metadata = {key: value for key, value in first.metadata.items() if key not in shards.SPLIT_KEYS}
        self.tensors: Sequence[Tensor] = tuple(
            _tensor(file.mapped, entry) for file in files for entry in file.header.tensors
        )
        self._is_closed = False
        self._by_name = {tensor.name: tensor for tensor in self.tensors}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name. Raises InputError if there is none, and if the file is closed."""
        found = self._by_name.get(name)
        if found is None:
            missing = "the file is closed; open it again" if self._is_closed else f"has no tensor {name!r}"
            raise InputError(f"{self.path}: {missing}")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def prefetch(self) -> None:
        """Reads the files into the page cache in the background."""
        self._prefetching.append(prefetch(self.paths))

    def check_unchanged(self) -> None:
        """Raises FileChanged if the files were written to or truncated since they were opened."""
        for file in self._files:
            file.check_unchanged()

    def close(self) -> None:
        """Closes the files. They are unmapped when the last view of a tensor or array is gone."""
        self.tensors, self.metadata, self._by_name = (), {}, {}
        self._is_closed = True
        for reading in self._prefetching:
            reading.set()
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, Exception):  # a changed file may be its cause
                self.check_unchanged()
        finally:
            self.close()


def open_gguf(path: str | Path, mode: LoadMode = "mmap") -> GGUFFile:
    """Opens a GGUF model; for a split model, `path` may be any of its shards.

    Raises InputError for a file that is incomplete or invalid and OSError for one that cannot be read.
    """
    path = Path(path)
    windows = Windows()
    opened = open_shard(path, mode, windows)
    count = shards.shard_count(path, opened.header.metadata)
    if count == 1:
        return GGUFFile(path, [opened])

    files = []
    for index, shard in enumerate(shards.find_shards(path, count)):
        file = opened if shard == path else open_shard(shard, mode, windows)
        shards.check_shard(shard, file.header.metadata, index, count)
        files.append(file)
    model = GGUFFile(path, files)
    shards.check_tensor_count(path, files[0].header.metadata, len(model.tensors))
    _check_unique_names(files)
    return model


class Shard:
    """One mapped file and its header."""

    def __init__(self, path: Path, mapped: MappedFile) -> None:
        self.path = path
        self.mapped = mapped
        try:
            self.header: Header = parse_header(path, mapped.data.data)
        finally:
            mapped.check_unchanged()  # a change of the file takes precedence over errors in its header


def open_shard(path: Path, mode: LoadMode = "mmap", windows: Windows | None = None) -> Shard:
    """Opens one file, whether it is a whole model or a shard. Raises what `open_gguf` raises."""
    if path.is_dir():
        raise InputError(f"{path}: a folder, wanted a GGUF file; `lltool convert` makes one from a checkpoint")
    with open_regular(path) as file:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        mapped = MappedFile(file, mode, windows)
    return Shard(path, mapped)


def _tensor(file: MappedFile, entry: TensorEntry) -> Tensor:
    width = row_bytes(entry.type, entry.shape[-1] if entry.shape else 1)

    def read(start: int, stop: int) -> Bytes:  # no reference to the tensor: a cycle would keep the file mapped
        return file.window(entry.offset + start * width, entry.offset + stop * width).reshape(-1, width)

    return Tensor(entry.name, entry.type, entry.shape, read)


def _check_unique_names(files: Sequence[Shard]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        for entry in file.header.tensors:
            if entry.name in seen:
                raise InputError(f"{file.path}: tensor {entry.name!r} is also in {seen[entry.name].name}")
            seen[entry.name] = file.path
