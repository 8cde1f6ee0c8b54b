"""The sizes of a model by name, for the shapes of tensors and the parts of fused ones."""

from collections.abc import Mapping
from typing import Any

DIMENSIONS = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "queries": "num_attention_heads * head_dim",
    "keys": "num_key_value_heads * head_dim",
    "head": "head_dim",
}
"""The names of common sizes, and the sums of products of config keys that they stand for."""


class Sizes:
    """Evaluates sums of products of config keys and numbers, such as `vocab_size` or `num_heads * head_dim + 2`.

    `group` is the number of query heads for each head of keys.

    The values are those of a config that a family's `describe` has completed, or that its `restore` has made.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __getitem__(self, name: str) -> int:
        total = 0
        for term in spell_out(name).split(" + "):
            product = 1
            for factor in term.split(" * "):
                product *= self._factor(factor)
            total += product
        return total

    def _factor(self, name: str) -> int:
        if name == "group":
            return int(self.values["num_attention_heads"] // self.values["num_key_value_heads"])
        return int(name if name.isdigit() else self.values[name])

    def shape(self, names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self[name] for name in names)


def spell_out(name: str) -> str:
    """The name's sum of products of config keys, as an error message shows it."""
    return DIMENSIONS.get(name, name)
