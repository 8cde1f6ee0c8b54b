"""The reference executor: it computes each operation by its own definition in numpy.

It is slow, and all other executors must agree with it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch, CacheType
from lltool.engine.executor import Observation
from lltool.engine.program import Program
from lltool.engine.reference.compare import compare_rows, score_rows
from lltool.engine.reference.context import Context


class ReferenceExecutor:
    """Runs a Program in `dtype`, one operation at a time."""

    head_rows = 64

    def __init__(
        self,
        program: Program,
        pages: int,
        *,
        slots: int = 0,
        dtype: type[np.floating] = np.float32,
        cache_type_k: CacheType = "f32",
        cache_type_v: CacheType = "f32",
    ) -> None:
        self._program = program
        self._context = Context(program, pages, slots, dtype, cache_type_k, cache_type_v)
        self._outputs = np.empty(0, np.int32)  # of the last batch

    def run(self, batch: Batch) -> None:
        self._context.batch, self._outputs = batch, batch.outputs
        for op in self._program.ops[: self._program.head]:
            op.reference(self._context)

    def logits(self, start: int, stop: int) -> NDArray[np.float32]:
        assert stop - start <= self.head_rows
        self._context.selected = self._outputs[start:stop]
        for op in self._program.ops[self._program.head :]:
            op.reference(self._context)
        return self._context[self._program.logits].astype(np.float32, copy=False)

    def score(self, start: int, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        return score_rows(self.logits, self.head_rows, start, targets)

    def compare(self, start: int, base: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        return compare_rows(base, self.logits(start, start + len(targets)), targets)

    def take_observations(self) -> dict[str, Observation]:
        taken = {name: seen for names, seen in self._context.observations.items() for name in names}
        self._context.observations = {}
        return taken

    def copy_page(self, source: int, target: int) -> None:
        for part in (*self._context.keys.values(), *self._context.values.values()):
            part[target * PAGE : (target + 1) * PAGE] = part[source * PAGE : (source + 1) * PAGE]

    def copy_slot(self, source: int, target: int) -> None:
        for states in self._context.slots.values():
            states[target] = states[source]

    @property
    def page_bytes(self) -> int:
        return sum(part[:PAGE].nbytes for part in self._entries())

    @property
    def slot_bytes(self) -> int:
        return sum(states[:1].nbytes for states in self._context.slots.values())

    def read_page(self, page: int) -> bytes:
        return b"".join(part[page * PAGE : (page + 1) * PAGE].tobytes() for part in self._entries())

    def write_page(self, page: int, data: bytes) -> None:
        _fill([part[page * PAGE : (page + 1) * PAGE] for part in self._entries()], data)

    def read_slot(self, slot: int) -> bytes:
        return b"".join(states[slot].tobytes() for states in self._context.slots.values())

    def write_slot(self, slot: int, data: bytes) -> None:
        _fill([states[slot] for states in self._context.slots.values()], data)

    def _entries(self) -> list[NDArray[Any]]:
        """The keys of all layers, and the values that are no part of them."""
        context = self._context
        values = [part for layer, part in context.values.items() if part.base is not context.keys[layer]]
        return [*context.keys.values(), *values]


def _fill(parts: list[NDArray[Any]], data: bytes) -> None:
    """Replaces arrays, one after the other, by the bytes of all."""
    for part in parts:
        part[:] = np.frombuffer(data[: part.nbytes], part.dtype).reshape(part.shape)
        data = data[part.nbytes :]
