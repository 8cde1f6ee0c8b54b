"""How queries of long texts grow with the position."""

from dataclasses import dataclass
from typing import Literal

from lltool.engine.models.rotary import Rotary
from lltool.gguf.architecture_keys import SCALES, ArchitectureKeys

Tempered = Literal["", "all", "unrotated"]
"""The layers whose queries grow: none, all, or those without rotary positions."""


@dataclass(frozen=True)
class Temper:
    """Queries are multiplied by 1 + factor * ln(1 + floor((position + offset) / length))."""

    factor: float
    length: int
    offset: int


# Llama 4's numbers, which its files need not state.
_LLAMA4 = Temper(0.1, 8192, 1)


def read_temper(keys: ArchitectureKeys, kind: Tempered, rotary: Rotary) -> Temper | None:
    """None for a model whose queries do not grow. Raises InputError if a value is absurd."""
    if not kind:
        return None
    default = _LLAMA4 if kind == "unrotated" else Temper(0.0, rotary.original_context, 0)
    factor = keys.number("attention.temperature_scale", default.factor, *SCALES)
    length = keys.integer("attention.temperature_length", default.length)
    return Temper(factor, length, default.offset) if factor else None
