"""Tables of mixtures of experts, which the families that have them share.

Checkpoints store the matrices of each expert for itself, or those of all experts as one stack; a file has stacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import Value, ValueType, u32
from lltool.quant.convert.families.changes import Chain, Fold, Inverse, Split, Stack
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.keys import Keys, Number, Setting
from lltool.quant.convert.families.rows import LayerSet, Row, all_layers
from lltool.quant.convert.families.stored import Stored

COUNT = "_experts"
"""The number of experts in sizes, for which configs have several names."""

STACKS = tuple(f"blk.{{}}.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
MAX_EXPERTS = 1 << 16


def router_row(checkpoint: str, layers: LayerSet = all_layers) -> Row:
    return Row("blk.{}.ffn_gate_inp.weight", checkpoint, (COUNT, "width"), layers=layers)


def single_rows(
    checkpoint: str,
    hidden: str,
    parts: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
    layers: LayerSet = all_layers,
) -> tuple[Row, ...]:
    """Rows for matrices of one expert each. `checkpoint` has `{expert}` and `{part}`; `hidden` is a size."""
    shapes = ((hidden, "width"), (hidden, "width"), ("width", hidden))
    return tuple(
        Row(stack, checkpoint.replace("{part}", part), shape, Stack(COUNT), layers=layers, experts=COUNT)
        for stack, part, shape in zip(STACKS, parts, shapes, strict=True)
    )


def stacked_rows(gate_up: str, down: str, hidden: str, layers: LayerSet = all_layers) -> tuple[Row, ...]:
    """Rows for stacks of all experts, in which the gate's rows come before those of up."""
    return (
        Row(STACKS[:2], gate_up, (COUNT, f"2 * {hidden}", "width"), split_stack(hidden, hidden), layers=layers),
        Row(STACKS[2], down, (COUNT, "width", hidden), layers=layers),
    )


def split_stack(*parts: str, groups: str = "") -> Chain:
    """Splits each matrix of a stack by its rows; with `groups`, as `Split` does inside of a matrix."""
    each = f"{COUNT} * {groups}" if groups else COUNT
    return Chain(Inverse(Fold(COUNT)), Split(parts, each), Fold(COUNT))


class Experts(Setting):
    """The numbers of experts and of those that a token uses; the first of `counts` is restored."""

    def __init__(self, *counts: str, used: str = "num_experts_per_tok") -> None:
        self.counts, self.used = counts, used

    def describe(self, config: Config) -> Keys:
        stated = [key for key in self.counts if config.get(key) is not None] or [self.counts[0]]
        count, used = config.integer(stated[0]), config.integer(self.used)
        for key in stated[1:]:
            config.require(key, config.get(key) == count, f"{count}, as {stated[0]} says")
        config.require(stated[0], count <= MAX_EXPERTS, f"at most {MAX_EXPERTS}")
        config.require(self.used, used <= count, f"at most the {count} experts")
        config.derive(COUNT, count)
        return {"expert_count": u32(count), "expert_used_count": u32(used)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        count = stored.integer("expert_count")
        stored.require("expert_count", count <= MAX_EXPERTS, f"at most {MAX_EXPERTS}")
        return {self.counts[0]: count, COUNT: count, self.used: stored.integer("expert_used_count")}


@dataclass(frozen=True)
class Count(Setting):
    """An integer of at least 0, which is not written if it is 0."""

    key: str
    gguf: str

    def describe(self, config: Config) -> Keys:
        found = config.get(self.key, 0)
        config.require(self.key, type(found) is int and 0 <= found < 2**31, "an integer from 0")
        config.derive(self.key, found)
        return {self.gguf: u32(found)} if found else {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {self.key: stored.integer(self.gguf) if stored.keys.get(self.gguf) else 0}


@dataclass(frozen=True)
class Truth(Setting):
    """True or false."""

    key: str
    gguf: str

    def describe(self, config: Config) -> Keys:
        config.expect(self.key, True, False)
        return {self.gguf: Value(ValueType.BOOL, bool(config.get(self.key, False)))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = stored.keys.get(self.gguf, False)
        stored.require(self.gguf, isinstance(found, bool), "true or false")
        return {self.key: found}


@dataclass(frozen=True)
class Gating(Setting):
    """How an architecture scores experts, as a file states it: 1 for softmax, 2 for sigmoid."""

    number: int

    def describe(self, config: Config) -> Keys:
        return {"expert_gating_func": u32(self.number)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = stored.keys.get("expert_gating_func", self.number)
        stored.require("expert_gating_func", found == self.number, f"{self.number}")
        return {}


@dataclass(frozen=True)
class Groups(Setting):
    """Groups of experts, of which the best are used."""

    def describe(self, config: Config) -> Keys:
        groups, used = config.integer("n_group", 1), config.integer("topk_group", 1)
        config.require(
            "n_group", config.values[COUNT] % groups == 0, f"a divisor of the {config.values[COUNT]} experts"
        )
        config.require("topk_group", used <= groups, f"at most the {groups} groups")
        return {"expert_group_count": u32(groups), "expert_group_used_count": u32(used)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        keys = {"n_group": "expert_group_count", "topk_group": "expert_group_used_count"}
        return {key: stored.integer(gguf, 1) for key, gguf in keys.items()}


SCALED_SIGMOID: tuple[Setting, ...] = (
    Experts("n_routed_experts", "num_local_experts"),
    Gating(2),
    Groups(),
    Number("routed_scaling_factor", "expert_weights_scale", *SCALES),
    Truth("norm_topk_prob", "expert_weights_norm"),
    Count("n_shared_experts", "expert_shared_count"),
    Count("first_k_dense_replace", "leading_dense_block_count"),
)
"""The routing of DeepSeek V3 and of models that took it over."""
