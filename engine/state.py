"""What the state of a sequence consists of, as the operations of a program describe it.

An attention keeps a key and a value for each token; they live in pages. A convolution or a scan keeps an amount that
does not grow with the text; it lives in a slot. Executors allocate both when they are created, and engine/cache.py
decides which pages and which slot belong to which sequence.
"""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lltool.engine.batch import PAGE

if TYPE_CHECKING:
    from lltool.engine.program import Program


_SHORT_TEXT = 8  # tokens; an encoder's texts that are shorter fill its pages before its batch


def choose_room(*, is_causal: bool, context: int, sequences: int, batch: int) -> tuple[int, int]:
    """The pages of the cache and the tokens of a batch, for texts of `context` tokens.

    A decoder gets room for so many `sequences`. An encoder takes whole texts, so that a batch has the tokens of one at
    least, and each text begins a page; it keeps nothing beyond a batch.
    """
    if is_causal:
        pages = sequences * -(-context // PAGE)
        return pages, min(batch, pages * PAGE)
    batch = max(batch, context)
    return -(-batch // PAGE) + batch // _SHORT_TEXT, batch


@dataclass(frozen=True)
class KeyValue:
    """The keys and values of a layer: for each token and head, `key_dim` and `value_dim` numbers.

    If `value_is_key`, values take no memory of their own: a value is the first `value_dim` numbers of its key. Layers
    that need their keys during a batch only have the same number, and take turns in one memory.
    """

    layer: int
    heads: int
    key_dim: int
    value_dim: int
    value_is_key: bool = False

    @property
    def token_width(self) -> int:
        """The numbers that are stored for a token."""
        return self.heads * (self.key_dim + (0 if self.value_is_key else self.value_dim))


@dataclass(frozen=True)
class Slot:
    """A part of a sequence's state that has a fixed size: float32 numbers of `shape`. The name is unique in a program.

    It is all zero before the first token of a sequence.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return 4 * prod(self.shape)


@dataclass(frozen=True)
class StateLayout:
    """All that a program keeps for a sequence."""

    key_values: tuple[KeyValue, ...]
    slots: tuple[Slot, ...]

    @staticmethod
    def of(program: "Program") -> "StateLayout":
        parts = [part for op in program.ops for part in op.state]
        slots = tuple(part for part in parts if isinstance(part, Slot))
        assert len({slot.name for slot in slots}) == len(slots), "two operations share a slot"
        return StateLayout(tuple(dict.fromkeys(part for part in parts if isinstance(part, KeyValue))), slots)

    @property
    def token_width(self) -> int:
        """The numbers that the pages hold for a token."""
        return sum(part.token_width for part in self.key_values)

    @property
    def slot_bytes(self) -> int:
        """The size of the slots of a sequence together; a checkpoint takes as much again."""
        return sum(slot.bytes for slot in self.slots)
