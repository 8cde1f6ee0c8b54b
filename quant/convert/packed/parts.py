"""The stored tensors of a packed checkpoint, and its quantization_config, with errors that name what was wanted."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any, Protocol

from lltool.gguf.errors import InputError
from lltool.gguf.source import Tensor
from lltool.quant.convert.raw import RawTensor


class RawFile(Protocol):
    @property
    def path(self) -> Path: ...
    def raw(self, name: str) -> RawTensor: ...


class PlainFile(Protocol):
    """A file with weights of a checkpoint, as the tables of families see it."""

    @property
    def path(self) -> Path: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def is_same(self, name: str, other: str) -> bool: ...
    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Unpacked:
    """A weight that is made from parts, as a file of its own; `path` is the file of its codes.

    `is_exact` if a type of GGUF holds its values, so that they must not be rounded before they get that type.
    """

    path: Path
    weight: Tensor
    is_exact: bool = False

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weight.shape

    def is_same(self, name: str, other: str) -> bool:
        return name == other

    def tensor(self, name: str) -> Tensor:
        return self.weight


class Parts:
    """The stored tensors by name. A packing takes those that it makes weights of; what is left stays as it is."""

    def __init__(self, files: Mapping[str, RawFile]) -> None:
        self.files = files
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.files and name not in self.taken

    def with_suffix(self, *suffixes: str) -> Iterator[str]:
        """The names, without their suffix, of the tensors that end in one of `suffixes` and were not taken."""
        for name in self.files:
            for suffix in suffixes:
                if name.endswith(suffix) and name not in self.taken:
                    yield name.removesuffix(suffix)

    def peek(self, name: str) -> RawTensor:
        return self.files[name].raw(name)

    def take(self, name: str, of: str, *dtypes: str, shape: tuple[int, ...] | None = None) -> RawTensor:
        """A part of the tensor `of`. Raises InputError if it is missing or has another type or shape."""
        if name not in self.files:
            where = self.files[of].path if of in self.files else "the checkpoint"
            raise InputError(f"{where}: {of}: is packed, but its part {name} is missing; is a shard missing?")
        raw = self.peek(name)
        if dtypes and raw.dtype not in dtypes:
            raise InputError(f"{raw.path}: {name}: type {raw.dtype}, wanted {' or '.join(dtypes)}")
        if shape is not None and raw.shape != shape:
            raise InputError(f"{raw.path}: {name}: shape {raw.shape}, wanted {shape}, as {of} has")
        self.taken.add(name)
        return raw

    def take_if_stored(
        self, name: str, of: str, *dtypes: str, shape: tuple[int, ...] | None = None
    ) -> RawTensor | None:
        return self.take(name, of, *dtypes, shape=shape) if name in self.files else None

    def drop(self, suffixes: Iterable[str]) -> int:
        """Leaves out all tensors whose names end in one of `suffixes`; returns how many they are."""
        found = {name for name in self.files if name.endswith(tuple(suffixes)) and name not in self.taken}
        self.taken |= found
        return len(found)


class Settings:
    """Checked access to the values of a quantization_config; `file` and `key` say where it stands."""

    def __init__(self, file: Path, key: str, values: Mapping[str, Any]) -> None:
        self.file, self.key, self.values = file, key, values

    def integer(self, key: str, *allowed: int, default: int | None = None) -> int:
        """An integer, which must be one of `allowed` if there are any."""
        found = self.values.get(key, default)
        fine = type(found) is int and (not allowed or found in allowed)
        self.require(key, fine, " or ".join(map(str, allowed)) or "an integer")
        return int(found)

    def choice(self, key: str, default: str, *allowed: str) -> str:
        """One of `allowed`, in lower case."""
        found = self.values.get(key)
        found = default if found is None else found
        lowered = found.lower() if isinstance(found, str) else ""
        self.require(key, lowered in allowed, " or ".join(allowed))
        return lowered

    def flag(self, key: str, default: bool) -> bool:
        found = self.values.get(key)
        found = default if found is None else found
        self.require(key, isinstance(found, bool), "true or false")
        return bool(found)

    def part(self, key: str, values: Mapping[str, Any]) -> "Settings":
        return Settings(self.file, f"{self.key}.{key}", values)

    def require(self, key: str, fine: bool, wanted: str) -> None:
        if not fine:
            found = f"found {short(self.values[key])}" if key in self.values else "missing"
            raise InputError(f"{self.file}: {self.key}.{key}: {found}, wanted {wanted}; this version reads no other")
