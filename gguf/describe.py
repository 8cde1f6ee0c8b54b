"""A summary of a GGUF model: size, parameters, bits per weight and tensor types."""

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
    """Totals over the tensors of one type."""

    type: GGMLType
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Description:
    """Facts about one model. Sizes are in bytes; `types` are ordered from the largest size to the smallest."""

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
        """Bits of tensor data per weight; None for a file without tensors."""
        return 8 * self.tensor_bytes / self.parameters if self.parameters else None


def describe_file(file: GGUFFile) -> Description:
    """Summarizes an open file from its header; reads no tensor data."""
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


def describe_adapter(file: GGUFFile) -> dict[str, Any] | None:
    """What a LoRA adapter changes: how many matrices, in which ranks, and its alpha; None for other files."""
    if _text(file.metadata, "adapter.type") != "lora":
        return None
    ranks = [tensor.shape[-1] for tensor in file.tensors if tensor.name.endswith(".lora_b") and tensor.shape]
    alpha = file.metadata.get("adapter.lora.alpha")
    return {"matrices": len(ranks), "ranks": sorted({*ranks}), "alpha": alpha.data if alpha is not None else None}


def plain_value(value: Value, max_items: int | None = None) -> Any:
    """A metadata value as plain Python data; arrays are cut to `max_items`."""
    if value.type != ValueType.ARRAY:
        return value.data
    shown = value.data[:max_items]
    if value.item == ValueType.ARRAY:
        return [plain_value(inner, max_items) for inner in shown]
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
