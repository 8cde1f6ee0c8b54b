"""Tables of Qwen's linear attention (gated delta nets), which has the place of attention in most layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import row_bytes
from lltool.gguf.metadata import Value, ValueType, array, u32
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.families.changes import (
    ADD_ONE,
    NEGATIVE_EXP,
    Chain,
    Change,
    Each,
    Gather,
    Inverse,
    Same,
    Split,
    Squeeze,
    take_rows,
)
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.keys import Keys, Setting
from lltool.quant.convert.families.rows import Row, layers_listed
from lltool.quant.convert.families.sizes import Sizes
from lltool.quant.convert.families.stored import Stored

KINDS = ("linear_attention", "full_attention")
LINEAR, FULL = (layers_listed("layer_types", kind) for kind in KINDS)
PERIOD = 4  # every 4th layer has full attention if a config does not say otherwise

_KEYS = "linear_num_key_heads * linear_key_head_dim"
_VALUES = "linear_num_value_heads * linear_value_head_dim"
_QKV = f"2 * {_KEYS} + {_VALUES}"
_GROUP = "_linear_group"  # heads of values for each head of keys
_GROUP_VALUES = f"{_GROUP} * linear_value_head_dim"
_BASE = "model.layers.{}."
_NET = f"{_BASE}linear_attn."


@dataclass(frozen=True)
class TileHeads(Change):
    """Orders heads of values so that those of one head of keys, which are neighbours in checkpoints, lie apart.

    Head number i of each group of neighbours comes before head i + 1 of any. `dim` is the number of rows of a head, or
    along axis 1, of columns.
    """

    dim: str
    axis: int = 0

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        return [self._take(tensor, self._order(sizes)) for tensor in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        return [self._take(tensor, np.argsort(self._order(sizes))) for tensor in tensors]

    def _order(self, sizes: Sizes) -> NDArray[np.int64]:
        groups, each, dim = sizes["linear_num_key_heads"], sizes[_GROUP], sizes[self.dim]
        return np.arange(groups * each * dim).reshape(groups, each, dim).swapaxes(0, 1).reshape(-1)

    def _take(self, tensor: Tensor, order: NDArray[np.int64]) -> Tensor:
        if tensor.shape[self.axis] != len(order):
            raise InputError(f"{tensor.name}: shape {tensor.shape}, wanted {len(order)} along axis {self.axis}")
        return take_columns(tensor, order) if self.axis else take_rows(tensor, order)


def take_columns(tensor: Tensor, columns: NDArray[np.int64]) -> Tensor:
    """The given columns of a matrix of floats."""
    size = row_bytes(tensor.type, 1)

    def read(start: int, stop: int) -> Bytes:
        rows = tensor.read(start, stop).reshape(stop - start, tensor.columns, size)
        return rows[:, columns].reshape(stop - start, len(columns) * size)

    return replace(tensor, shape=(tensor.shape[0], len(columns)), read=read)


def _tile_values(change: Change) -> Change:
    """A change of the values' rows, which follow those of queries and keys."""
    parts = Split((f"2 * {_KEYS}", _VALUES))
    return Chain(parts, Each((Same(), change)), Inverse(parts))


ATTENTION = tuple(
    Row(f"blk.{{}}.{gguf}.weight", f"{_BASE}self_attn.{name}.weight", shape, change, layers=FULL)
    for gguf, name, shape, change in (
        ("attn_q", "q_proj", ("2 * num_attention_heads * head_dim", "width"), Same()),  # of each head, and its gate
        ("attn_k", "k_proj", ("keys", "width"), Same()),
        ("attn_v", "v_proj", ("keys", "width"), Same()),
        ("attn_q_norm", "q_norm", ("head",), ADD_ONE),
        ("attn_k_norm", "k_norm", ("head",), ADD_ONE),
        ("attn_output", "o_proj", ("width", "queries"), Same()),
    )
)

_NORM = Row("blk.{}.ssm_norm.weight", f"{_NET}norm.weight", ("linear_value_head_dim",), layers=LINEAR)


def _net(gguf: str | tuple[str, ...], source: str, shape: tuple[str, ...], change: Change) -> Row:
    return Row(gguf, _NET + source, shape, change, layers=LINEAR)


GROUPED_NET = (
    _net(
        ("blk.{}.attn_qkv.weight", "blk.{}.attn_gate.weight"),
        "in_proj_qkvz.weight",
        (f"{_QKV} + {_VALUES}", "width"),
        Chain(
            Gather(
                Split(
                    ("linear_key_head_dim", "linear_key_head_dim", _GROUP_VALUES, _GROUP_VALUES),
                    "linear_num_key_heads",
                )
            ),
            Split((_QKV, _VALUES)),
        ),
    ),
    _net("blk.{}.ssm_ba.weight", "in_proj_ba.weight", ("2 * linear_num_value_heads", "width"), Same()),
    _net("blk.{}.ssm_conv1d.weight", "conv1d.weight", (_QKV, "1", "linear_conv_kernel_dim"), Squeeze(1)),
    _net("blk.{}.ssm_dt.bias", "dt_bias", ("linear_num_value_heads",), Same()),
    _net("blk.{}.ssm_a", "A_log", ("linear_num_value_heads",), NEGATIVE_EXP),
    _NORM,
    _net("blk.{}.ssm_out.weight", "out_proj.weight", ("width", _VALUES), Same()),
)
"""Of Qwen3-Next, whose matrix has the rows of one head of keys after the other."""

_HEADS, _VALUE_ROWS = TileHeads("1"), TileHeads("linear_value_head_dim")
TILED_NET = (
    _net("blk.{}.attn_qkv.weight", "in_proj_qkv.weight", (_QKV, "width"), _tile_values(_VALUE_ROWS)),
    _net("blk.{}.attn_gate.weight", "in_proj_z.weight", (_VALUES, "width"), _VALUE_ROWS),
    _net("blk.{}.ssm_beta.weight", "in_proj_b.weight", ("linear_num_value_heads", "width"), _HEADS),
    _net("blk.{}.ssm_alpha.weight", "in_proj_a.weight", ("linear_num_value_heads", "width"), _HEADS),
    _net(
        "blk.{}.ssm_conv1d.weight",
        "conv1d.weight",
        (_QKV, "1", "linear_conv_kernel_dim"),
        Chain(Squeeze(1), _tile_values(_VALUE_ROWS)),
    ),
    _net("blk.{}.ssm_dt.bias", "dt_bias", ("linear_num_value_heads",), _HEADS),
    _net("blk.{}.ssm_a", "A_log", ("linear_num_value_heads",), Chain(_HEADS, NEGATIVE_EXP)),
    _NORM,
    _net("blk.{}.ssm_out.weight", "out_proj.weight", ("width", _VALUES), TileHeads("linear_value_head_dim", axis=1)),
)
"""Of Qwen 3.5, with a matrix for each part; files have its heads of values in the order of `TileHeads`."""


class LinearAttention(Setting):
    """The sizes of gated delta nets, and the layers that have one."""

    def describe(self, config: Config) -> Keys:
        kernel, keys, values, key_dim, value_dim = (
            config.integer(f"linear_{name}")
            for name in ("conv_kernel_dim", "num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
        )
        config.require("linear_num_value_heads", values % keys == 0, f"a multiple of the {keys} heads of keys")
        config.derive(_GROUP, values // keys)
        return {
            "ssm.conv_kernel": u32(kernel),
            "ssm.state_size": u32(key_dim),
            "ssm.group_count": u32(keys),
            "ssm.time_step_rank": u32(values),
            "ssm.inner_size": u32(values * value_dim),
            **_describe_layers(config),
        }

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        keys, values = stored.integer("ssm.group_count"), stored.integer("ssm.time_step_rank")
        inner = stored.integer("ssm.inner_size")
        stored.require("ssm.time_step_rank", values % keys == 0, f"a multiple of the {keys} heads of keys")
        stored.require("ssm.inner_size", inner % values == 0, f"a multiple of the {values} heads of values")
        return {
            "linear_conv_kernel_dim": stored.integer("ssm.conv_kernel"),
            "linear_key_head_dim": stored.integer("ssm.state_size"),
            "linear_num_key_heads": keys,
            "linear_num_value_heads": values,
            "linear_value_head_dim": inner // values,
            _GROUP: values // keys,
            "layer_types": _restore_layers(stored, config["num_hidden_layers"]),
        }


def _describe_layers(config: Config) -> dict[str, Value]:
    """The kind of each layer, and the period if they have one, which engines assume to be PERIOD where none is said."""
    layers, kinds = config.integer("num_hidden_layers"), config.get("layer_types")
    period = config.integer("full_attention_interval", PERIOD)
    if kinds is None:
        kinds = [KINDS[(layer + 1) % period == 0] for layer in range(layers)]
        config.derive("layer_types", kinds)
    fine = isinstance(kinds, list) and len(kinds) == layers and all(kind in KINDS for kind in kinds)
    config.require("layer_types", fine, f"{' or '.join(KINDS)} for each of {layers} layers")
    is_linear = [kind == KINDS[0] for kind in kinds]
    keys = {"attention.recurrent_layers": array(ValueType.BOOL, np.array(is_linear))}
    period = is_linear.index(False) + 1 if False in is_linear else layers + 1
    if is_linear == [(layer + 1) % period != 0 for layer in range(layers)]:
        keys["full_attention_interval"] = u32(period)
    return keys


def _restore_layers(stored: Stored, layers: int) -> list[str]:
    key = "attention.recurrent_layers"
    is_linear = stored.keys.get(key)
    if is_linear is None:
        period = stored.integer("full_attention_interval", PERIOD)
        is_linear = [(layer + 1) % period != 0 for layer in range(layers)]
    fine = isinstance(is_linear, list) and len(is_linear) >= layers and all(type(flag) is bool for flag in is_linear)
    stored.require(key, fine, f"true or false for each of {layers} layers")
    return [KINDS[not flag] for flag in is_linear[:layers]]
