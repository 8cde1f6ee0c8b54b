"""What families share in which some layers have attention and the others do not."""

from dataclasses import replace
from typing import Any

import numpy as np

from lltool.gguf.metadata import ValueType, array
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.keys import Heads, Keys
from lltool.quant.convert.families.rows import LayerSet, Row
from lltool.quant.convert.families.stored import Stored

ATTENDS = "_attends"
"""A derived key: for each layer, whether it has attention."""


def attending(config: Any, number: int) -> bool:
    return bool(config[ATTENDS][number])


def not_attending(config: Any, number: int) -> bool:
    return not config[ATTENDS][number]


def only(layers: LayerSet, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows, for these layers alone."""
    return tuple(replace(row, layers=layers) for row in rows)


class LayerHeads(Heads):
    """The heads, where layers without attention have no key/value heads; the config has ATTENDS."""

    def describe(self, config: Config) -> Keys:
        keys = super().describe(config)
        counts = [config.values["num_key_value_heads"] if attends else 0 for attends in config.values[ATTENDS]]
        return keys | {"attention.head_count_kv": array(ValueType.INT32, np.array(counts, np.int32))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        key, layers = "attention.head_count_kv", config["num_hidden_layers"]
        heads = stored.integer("attention.head_count")
        counts = stored.keys.get(key, heads)
        counts = counts if isinstance(counts, list) else [counts] * layers
        fine = len(counts) == layers and all(type(count) is int for count in counts)
        distinct: set[int] = set(counts) - {0} if fine else set()
        fine = len(distinct) == 1
        stored.require(key, fine, f"for each of {layers} layers, 0 or the same number, and one with attention")
        kv_heads = distinct.pop()
        stored.require("attention.head_count", heads <= config["hidden_size"], "no more than embedding_length")
        stored.require(key, kv_heads > 0 and heads % kv_heads == 0, f"a divisor of {heads}")
        return {
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            ATTENDS: [count > 0 for count in counts],
        }
