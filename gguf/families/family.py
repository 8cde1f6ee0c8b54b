"""What a family of models is to the converter: a table of names, and its config as GGUF keys; both ways.

`to_gguf` makes a GGUF model of a checkpoint's tensors, `to_checkpoint` the other way, lazily: rows are renamed,
reordered or shifted when the writer asks for them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.families.config import Config
from lltool.gguf.families.rope import ROPE_TYPES, llama3_divisors, read_rope
from lltool.gguf.families.stored import Stored
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, f32, u32
from lltool.gguf.source import Bytes, Tensor

Keys = dict[str, Value]
Change = Literal["", "query pairs", "key pairs", "plus one"]


@dataclass(frozen=True)
class Row:
    """`{}` in a name is the block. An optional tensor may be missing from a checkpoint."""

    gguf: str
    checkpoint: str
    change: Change = ""
    optional: bool = False


@dataclass(frozen=True)
class Family:
    """`describe` gives GGUF keys without the architecture, `restore` the config.json of such keys.

    `defaults` are those of transformers' config class. `prefixes` of checkpoint names are replaced before the table
    is read; tensors whose names begin with or contain one of `ignored` are left out.
    """

    architecture: str
    models: tuple[str, ...]
    rows: tuple[Row, ...]
    defaults: Mapping[str, Any]
    describe: Callable[[Config], Keys]
    restore: Callable[[Stored], dict[str, Any]]
    prefixes: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)

    def expand(self, layers: int) -> Iterator[Row]:
        """The table's rows for a model of `layers`: those before the blocks, each block's, those after."""
        inside = [row for row in self.rows if "{}" in row.gguf]
        first = self.rows.index(inside[0])
        yield from self.rows[:first]
        for layer in range(layers):
            for row in inside:
                yield Row(row.gguf.format(layer), row.checkpoint.format(layer), row.change, row.optional)
        yield from self.rows[first + len(inside) :]

    def rope_divisors(self, config: Config) -> NDArray[np.float32] | None:
        """The data of `rope_freqs.weight`, (head_dim / 2,), for models that have Llama 3's scaling."""
        parameters = read_rope(config, ROPE_TYPES)
        return llama3_divisors(parameters, config.values["head_dim"]) if parameters["rope_type"] == "llama3" else None

    def to_gguf(self, names: Sequence[str], read: Callable[[str], Tensor], config: Mapping[str, Any]) -> list[Tensor]:
        """Tensors in GGUF order. Raises InputError for one that is missing, and for one that has no place."""
        known = {self._plain_name(name): name for name in names if not any(part in name for part in self.ignored)}
        if config.get("tie_word_embeddings"):
            known.pop("lm_head.weight", None)
        tensors = []
        for row in self.expand(config["num_hidden_layers"]):
            name = known.pop(row.checkpoint, None)
            if name is not None:
                tensors.append(_change(read(name), row.gguf, row.change, config, inverse=False))
            elif not row.optional and not (row.checkpoint == "lm_head.weight" and config.get("tie_word_embeddings")):
                raise InputError(f"{row.checkpoint}: missing from the checkpoint; is a shard missing?")
        if known:
            left = ", ".join(sorted(known.values())[:3])
            raise InputError(f"{len(known)} tensors have no place in {self.architecture}: {left}")
        return tensors

    def to_checkpoint(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> list[Tensor]:
        """Float tensors of a GGUF file under their checkpoint names. Raises InputError for one that has no place."""
        known = {tensor.name: tensor for tensor in tensors if tensor.name != "rope_freqs.weight"}
        changed = []
        for row in self.expand(config["num_hidden_layers"]):
            tensor = known.pop(row.gguf, None)
            if tensor is not None:
                changed.append(_change(tensor, row.checkpoint, row.change, config, inverse=True))
            elif not row.optional and row.gguf != "output.weight":
                raise InputError(f"{row.gguf}: missing; is this file whole?")
        if known:
            raise InputError(f"{len(known)} tensors have no place in {self.models[0]}: {', '.join(list(known)[:3])}")
        return changed

    def _plain_name(self, name: str) -> str:
        for prefix, plain in self.prefixes.items():
            if name.startswith(prefix):
                return plain + name.removeprefix(prefix)
        return name


def _change(tensor: Tensor, name: str, change: Change, config: Mapping[str, Any], *, inverse: bool) -> Tensor:
    match change:
        case "query pairs":
            return _reorder_pairs(tensor, name, config["num_attention_heads"], inverse)
        case "key pairs":
            return _reorder_pairs(tensor, name, config["num_key_value_heads"], inverse)
        case "plus one":
            return _shift(tensor, name, -1 if inverse else 1)
    return Tensor(name, tensor.type, tensor.shape, tensor.read)


def _reorder_pairs(tensor: Tensor, name: str, heads: int, inverse: bool) -> Tensor:
    """Checkpoints rotate dimensions i and i + half of a head; files of the llama architecture 2i and 2i + 1.

    Reorders the rows of a matrix or the elements of a bias, head by head.
    """
    outputs = tensor.shape[0]
    if outputs % (2 * heads):
        raise InputError(f"{tensor.name}: {outputs} rows, wanted a multiple of 2 for each of {heads} heads")
    dim = outputs // heads
    pairs = np.arange(dim).reshape((dim // 2, 2) if inverse else (2, dim // 2)).T.reshape(-1)

    def read_bias(start: int, stop: int) -> Bytes:
        items = tensor.read(start, stop).reshape(heads, dim, -1)
        reordered: Bytes = items[:, pairs].reshape(stop - start, -1)
        return reordered

    def read_rows(start: int, stop: int) -> Bytes:
        first, last = start // dim, -(-stop // dim)  # whole heads around the rows
        rows = tensor.read(first * dim, last * dim)
        wanted = (np.arange(first, last)[:, None] * dim + pairs).reshape(-1)
        reordered: Bytes = rows[wanted[start - first * dim : stop - first * dim] - first * dim]
        return reordered

    return Tensor(name, tensor.type, tensor.shape, read_bias if len(tensor.shape) == 1 else read_rows)


def _shift(tensor: Tensor, name: str, amount: int) -> Tensor:
    """A norm that multiplies by 1 + weight, as one that multiplies by the weight; always float32."""

    def read(start: int, stop: int) -> Bytes:
        data = np.ascontiguousarray(tensor.read(start, stop))
        match tensor.type:
            case GGMLType.F32:
                values = data.view(np.float32)
            case GGMLType.F16:
                values = data.view(np.float16).astype(np.float32)
            case GGMLType.BF16:
                values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            case _:
                raise InputError(f"{tensor.name}: a norm in {tensor.type.name}, wanted F32, F16 or BF16")
        shifted: Bytes = (values + np.float32(amount)).view(np.uint8)
        return shifted

    return Tensor(name, GGMLType.F32, tensor.shape, read)


# Keys that all families have: config.json, GGUF.
_SIZES = (
    ("num_hidden_layers", "block_count"),
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
)
_HEAD_DIMS = ("attention.key_length", "attention.value_length")


def describe_sizes(config: Config) -> Keys:
    """Sizes of a decoder with grouped-query attention and RMS norms; fills in what the config leaves to be derived."""
    heads, width = config.integer("num_attention_heads"), config.integer("hidden_size")
    config.values["num_key_value_heads"] = config.integer("num_key_value_heads", heads)
    config.require("num_key_value_heads", heads % config.values["num_key_value_heads"] == 0, f"a divisor of {heads}")
    config.require("hidden_size", bool(config.get("head_dim")) or width % heads == 0, f"a multiple of {heads} heads")
    head_dim = config.values["head_dim"] = config.integer("head_dim", width // heads)
    config.expect("tie_word_embeddings", True, False)
    keys = {gguf: u32(config.integer(name)) for name, gguf in _SIZES}
    keys["attention.layer_norm_rms_epsilon"] = f32(config.number("rms_norm_eps"))
    if head_dim * heads != width:
        keys |= dict.fromkeys(_HEAD_DIMS, u32(head_dim))
    return keys


def restore_sizes(stored: Stored) -> dict[str, Any]:
    """The inverse of `describe_sizes`."""
    heads = stored.integer("attention.head_count")
    defaults = {"attention.head_count_kv": heads}
    sizes = {name: stored.integer(gguf, defaults.get(gguf)) for name, gguf in _SIZES}
    tensors = len(stored.names)
    stored.require("block_count", sizes["num_hidden_layers"] <= tensors, f"no more than the {tensors} tensors")
    stored.require("attention.head_count", heads <= sizes["hidden_size"], "no more than embedding_length")
    head_dim = stored.integer(_HEAD_DIMS[0], sizes["hidden_size"] // heads)
    for key in (*_HEAD_DIMS, "rope.dimension_count"):
        said = stored.keys.get(key, head_dim) == head_dim
        stored.require(key, said, f"{head_dim}; no config.json of this model can say it")
    return {**sizes, "rms_norm_eps": stored.number("attention.layer_norm_rms_epsilon"), "head_dim": head_dim}
