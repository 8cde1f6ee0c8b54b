"""The facts of a GGUF model that a person asks for first: size, parameters, bits per weight, which types."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.reader import GGUFFile


@dataclass(frozen=True)
class TypeShare:
    """What the tensors of one type add up to."""

    type: GGMLType
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Description:
    """Facts of one model; sizes in bytes, `types` by falling size."""

    files: tuple[str, ...]
    version: int
    alignment: int
    architecture: str | None
    name: str | None
    file_type: str | None
    parameters: int
    file_bytes: int
    tensor_bytes: int
    types: tuple[TypeShare, ...]

    @property
    def bits_per_weight(self) -> float | None:
        """Of tensor data; None for a file without tensors."""
        return 8 * self.tensor_bytes / self.parameters if self.parameters else None


def describe(file: GGUFFile) -> Description:
    """Adds up what an open file says about itself; reads no tensor data."""
    tensors, parameters, size = Counter[GGMLType](), Counter[GGMLType](), Counter[GGMLType]()
    for tensor in file.tensors:
        tensors[tensor.type] += 1
        parameters[tensor.type] += prod(tensor.shape)
        size[tensor.type] += tensor.nbytes
    return Description(
        files=tuple(str(path) for path in file.paths),
        version=file.version,
        alignment=file.alignment,
        architecture=_text(file.metadata, "general.architecture"),
        name=_text(file.metadata, "general.name"),
        file_type=_file_type(file.metadata),
        parameters=parameters.total(),
        file_bytes=file.size,
        tensor_bytes=size.total(),
        types=tuple(TypeShare(type, tensors[type], parameters[type], count) for type, count in size.most_common()),
    )


def plain_value(value: Value, max_items: int | None = None) -> Any:
    """A metadata value as plain Python data, an array cut to `max_items`."""
    if value.type != ValueType.ARRAY:
        return value.data
    shown = value.data[:max_items]
    return shown.tolist() if hasattr(shown, "tolist") else list(shown)


def _text(metadata: Mapping[str, Value], key: str) -> str | None:
    value = metadata.get(key)
    return value.data if value and value.type == ValueType.STRING else None


def _file_type(metadata: Mapping[str, Value]) -> str | None:
    value = metadata.get("general.file_type")
    if value is None:
        return None
    try:
        return FileType(value.data).name
    except (ValueError, TypeError):
        return f"unknown ({value.data})"
