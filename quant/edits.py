"""Changes to a model besides its weights: blocks are removed, and metadata keys get values that are given as texts."""

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.header import NUMBER_FORMAT
from lltool.gguf.metadata import INTEGERS, Value, ValueType, array, boolean, near, string, u32
from lltool.gguf.source import Model, Source, Tensor
from lltool.quant.choose import block_of

# The names of types that `inspect` shows, and those of llama.cpp's --override-kv that differ.
_TYPES = {
    **{type.name.lower(): type for type in ValueType if type != ValueType.ARRAY},
    "float": ValueType.FLOAT32,
    "str": ValueType.STRING,
}
_WANTED = "TYPE int (32 bits), float, bool (true, false), str, or one as inspect shows it, such as uint64 or int32[]"


def parse_override(text: str) -> tuple[str, Value]:
    """The key and value of `KEY=TYPE:VALUE`, TYPE as in `parse_setting`. Raises InputError for other texts."""
    key, _, rest = text.partition("=")
    value = _typed(*rest.split(":", 1)) if key and ":" in rest else None
    if value is None:
        raise InputError(f"override {text!r}: wanted KEY=TYPE:VALUE, {_WANTED}")
    return key, value


def parse_setting(text: str, metadata: Mapping[str, Value]) -> tuple[str, Value]:
    """The key and value of `KEY=VALUE`, of the type that the key has in `metadata`, or of `KEY=TYPE:VALUE`.

    A value that begins with the name of a type and a colon has that type: `a=str:int:1` sets the text "int:1". An array
    is a list as in JSON, its type an item type with brackets: `a=int32[]:[1, 2]`. Raises InputError for a value that
    the type cannot hold, and for a new key without a type.
    """
    key, _, rest = text.partition("=")
    if not key or "=" not in text:
        raise InputError(f"{text!r}: wanted KEY=VALUE or KEY=TYPE:VALUE")
    type, colon, _ = rest.partition(":")
    if colon and (type == "int" or type.removesuffix("[]") in _TYPES):
        return parse_override(text)
    old = metadata.get(key)
    if old is None:
        raise InputError(f"the file has no key {key!r}{near(key, metadata) or f'; to add it, write {key}=TYPE:VALUE'}")
    value = _read_list(rest, old.item) if old.item is not None else _read_plain(rest, old.type)
    if value is None:
        wanted = old.type.name.lower() if old.item is None else f"a list of {old.item.name.lower()}, as in JSON"
        raise InputError(f"{text!r}: {key} is of another type, wanted {wanted}, or TYPE:VALUE to change the type")
    return key, value


def _typed(type: str, text: str) -> Value | None:
    if type == "int":
        return _read_plain(text, ValueType.INT32 if text.startswith("-") else ValueType.UINT32)
    if type.endswith("[]"):
        item = _TYPES.get(type.removesuffix("[]"))
        return None if item is None else _read_list(text, item)
    return None if type not in _TYPES else _read_plain(text, _TYPES[type])


def _read_plain(text: str, type: ValueType) -> Value | None:
    """The value of a text; None if the type cannot hold it."""
    if type == ValueType.STRING:
        return string(text)
    if type == ValueType.BOOL:
        return boolean(text == "true") if text in ("true", "false") else None
    try:
        return _checked(type, int(text) if type in INTEGERS else float(text))
    except ValueError:
        return None


def _read_list(text: str, item: ValueType) -> Value | None:
    wanted: type | tuple[type, ...] = int if item in INTEGERS else (int, float)
    if item in (ValueType.STRING, ValueType.BOOL):
        wanted = str if item == ValueType.STRING else bool
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if item == ValueType.ARRAY or not isinstance(found, list):
        return None
    for one in found:
        if not isinstance(one, wanted) or (isinstance(one, bool) and item != ValueType.BOOL):
            return None
        if item not in (ValueType.STRING, ValueType.BOOL) and _checked(item, one) is None:
            return None
    return array(item, found)


def _checked(type: ValueType, number: Any) -> Value | None:
    """The number as a value, if the type can hold it."""
    try:
        struct.pack(NUMBER_FORMAT[type], number)
    except (struct.error, OverflowError):
        return None
    return Value(type, number)


def prune_layers(source: Source, layers: Collection[int], where: str) -> tuple[Model, dict[str, str]]:
    """The model without these blocks, the others renumbered, and the old name of each tensor by its new name.

    Metadata arrays with one value per block are cut too. Raises InputError, beginning with `where`, for blocks that the
    model does not have and if no block is left.
    """
    blocks = sorted({block for tensor in source.tensors if (block := block_of(tensor.name)) is not None})
    if missing := sorted(set(layers) - set(blocks)):
        raise InputError(f"{where}: has no layer {missing[0]} to prune; it has {len(blocks)}")
    rest = [block for block in blocks if block not in layers]
    if not rest:
        raise InputError(f"{where}: all {len(blocks)} layers would be pruned")
    numbers = {block: index for index, block in enumerate(rest)}
    tensors, names = [], {}
    for tensor in source.tensors:
        block = block_of(tensor.name)
        if block in layers:
            continue
        name = tensor.name if block is None else tensor.name.replace(f".{block}.", f".{numbers[block]}.", 1)
        names[name] = tensor.name
        tensors.append(Tensor(name, tensor.type, tensor.shape, tensor.read))
    return Model(_prune_metadata(source.metadata, blocks, rest), tensors), names


def _prune_metadata(metadata: Mapping[str, Value], blocks: Sequence[int], rest: Sequence[int]) -> dict[str, Value]:
    pruned = dict(metadata)
    prefix = f"{metadata['general.architecture'].data}." if "general.architecture" in metadata else "?"
    for key, value in metadata.items():
        is_of_blocks = key.startswith(prefix) and value.item not in (None, ValueType.STRING)
        if is_of_blocks and len(value.data) == len(blocks):
            kept = [index for index, block in enumerate(blocks) if block in rest]
            is_nested = value.item == ValueType.ARRAY
            data = tuple(value.data[index] for index in kept) if is_nested else np.asarray(value.data)[kept]
            pruned[key] = Value(value.type, data, value.item)
    pruned[f"{prefix}block_count"] = u32(len(rest))
    return pruned
