"""Changes to a model on its way through quantization that are none of its weights': blocks left out, keys set."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, boolean, f32, string, u32
from lltool.gguf.source import Model, Source, Tensor
from lltool.quant.choose import block_of


def parse_override(text: str) -> tuple[str, Value]:
    """The key and value of `KEY=TYPE:VALUE`, TYPE int, float, bool or str."""
    key, _, rest = text.partition("=")
    type, colon, value = rest.partition(":")
    try:
        if key and colon:
            match type:
                case "int" if -(2**31) <= int(value) < 2**32:
                    return key, u32(int(value)) if int(value) >= 0 else Value(ValueType.INT32, int(value))
                case "float":
                    return key, f32(float(value))
                case "bool" if value in ("true", "false"):
                    return key, boolean(value == "true")
                case "str":
                    return key, string(value)
    except ValueError:
        pass
    raise InputError(f"override {text!r}: wanted KEY=TYPE:VALUE, TYPE int (32 bits), float, bool (true, false) or str")


def prune_layers(source: Source, layers: Collection[int], where: str) -> tuple[Model, dict[str, str]]:
    """The model without these blocks, the others renumbered; and what each tensor was named before.

    Values that a model has for each block are cut too. Raises InputError, beginning with `where`, for blocks that are
    not there.
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
            kept = np.isin(blocks, rest)
            pruned[key] = Value(value.type, np.asarray(value.data)[kept], value.item)
    pruned[f"{prefix}block_count"] = u32(len(rest))
    return pruned
