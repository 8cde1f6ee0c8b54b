"""The rows of a family's table of tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lltool.quant.convert.families.changes import SAME, Change
from lltool.quant.convert.families.sizes import Sizes

LayerSet = Callable[[Mapping[str, Any], int], bool]
"""Whether a layer of a model with this config has a row's tensors."""


def all_layers(config: Mapping[str, Any], layer: int) -> bool:
    return True


def layers_before(key: str) -> LayerSet:
    """The layers before the number that a config key gives, such as the dense ones before those with experts."""
    return lambda config, layer: layer < config[key]


def layers_from(key: str) -> LayerSet:
    return lambda config, layer: layer >= config[key]


def layers_listed(key: str, kind: Any) -> LayerSet:
    """The layers for which a config's list has this item."""
    return lambda config, layer: bool(config[key][layer] == kind)


@dataclass(frozen=True)
class Row:
    """Tensors of a GGUF file, and the tensors of a checkpoint that they are made from by an invertible change.

    `gguf` and `checkpoint` are names, of which there is more than one where a change splits a tensor. In a name, `{}`
    stands for the number of the layer, `{expert}` for that of an expert, of which `experts` gives the number, and
    `{letter}` for each of `letters` in turn.
    `shape` has the sizes of each checkpoint tensor. If `when` is given, the row exists only if that key of the config
    is true, or with `not ` before it, if it is false. The tensors of an optional row may be missing.

    Rows that make the same GGUF tensors are alternatives: the first whose sources exist counts, and export takes the
    first of all.
    """

    gguf: str | tuple[str, ...]
    checkpoint: str
    shape: tuple[str, ...]
    change: Change = SAME
    when: str = ""
    layers: LayerSet = all_layers
    experts: str = ""
    letters: str = ""
    optional: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.gguf,) if isinstance(self.gguf, str) else self.gguf

    @property
    def is_of_layer(self) -> bool:
        return "{}" in self.targets[0]

    def sources(self, sizes: Sizes) -> list[str]:
        """The names in the checkpoint, of a row whose layer is filled in."""
        if not self.experts:
            return [self.checkpoint.replace("{letter}", letter) for letter in self.letters or ("",)]
        return [self.checkpoint.replace("{expert}", str(expert)) for expert in range(sizes[self.experts])]

    def of_layer(self, layer: int) -> "Row":
        number = str(layer)
        gguf = tuple(name.replace("{}", number) for name in self.targets)
        return replace(self, gguf=gguf, checkpoint=self.checkpoint.replace("{}", number))

    def is_wanted(self, config: Mapping[str, Any]) -> bool:
        """Whether `when` holds."""
        negated = self.when.startswith("not ")
        return not self.when or bool(config.get(self.when.removeprefix("not "))) != negated


def expand(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Row]:
    """A row for each layer that has it: those before the layers, of each layer, and after them."""
    inside = [row for row in rows if row.is_of_layer]
    first = rows.index(inside[0])
    expanded = list(rows[:first])
    for layer in range(config["num_hidden_layers"]):
        expanded += [row.of_layer(layer) for row in inside if row.layers(config, layer)]
    return expanded + [row for row in rows[first:] if not row.is_of_layer]
