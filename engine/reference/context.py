"""What the reference computation of an operation works with."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch, CacheType
from lltool.engine.executor import Observation
from lltool.engine.program import Buffer, Program, Rows
from lltool.engine.state import Slot, StateLayout
from lltool.quant.codec import decode

Floats = NDArray[Any]  # in the context's dtype


class Context:
    """Buffers, weights, the batch and the cache. `context[buffer]` is (rows, width) in `dtype`.

    `keys[layer]` and `values[layer]` are (pages * PAGE, heads, width), rounded as a cache of `key_type` and
    `value_type` rounds them; values that are the beginnings of keys are a view. `slots[name]` is (slots, *shape).
    Weights are decoded on first use and kept.
    """

    batch: Batch  # set by each run

    def __init__(
        self,
        program: Program,
        pages: int,
        slots: int,
        dtype: type[np.floating],
        key_type: CacheType,
        value_type: CacheType,
    ) -> None:
        self.program = program
        self.key_type = key_type
        self.value_type = value_type
        self.selected = np.empty(0, np.int32)  # the rows of the batch that the head runs over
        self.observations: dict[tuple[str, ...], Observation] = {}
        layout, rows = StateLayout.of(program), pages * PAGE
        self.keys = {kv.layer: np.zeros((rows, kv.heads, kv.key_dim), dtype) for kv in layout.key_values}
        self.values = {
            kv.layer: self.keys[kv.layer][..., : kv.value_dim]
            if kv.value_is_key
            else np.zeros((rows, kv.heads, kv.value_dim), dtype)
            for kv in layout.key_values
        }
        self.slots = {slot.name: np.zeros((slots, *slot.shape), dtype) for slot in layout.slots}
        self._dtype = np.dtype(dtype)
        self._weights: dict[str, NDArray[np.float32]] = {}
        # Keyed by place, so that reusing a place too early gives wrong results here too.
        self._arena: dict[tuple[Rows, int], Floats] = {}

    def __getitem__(self, buffer: Buffer) -> Floats:
        return self._arena[self.program.place(buffer)]

    def __setitem__(self, buffer: Buffer, value: Floats) -> None:
        assert value.shape[1] == buffer.width
        self._arena[self.program.place(buffer)] = value.astype(self._dtype, copy=False)

    def sequences(self, *slots: Slot) -> Iterator[tuple[NDArray[np.intp], list[Floats]]]:
        """For each sequence of the batch: its rows, in order, and its state before them in each of the slots.

        A state is a view, to be overwritten with the state after the rows.
        """
        batch = self.batch
        for sequence in np.unique(batch.sequences):
            rows = np.flatnonzero(batch.sequences == sequence)
            states = [self.slots[slot.name][batch.slots[sequence]] for slot in slots]
            if batch.positions[rows[0]] == 0:
                for state in states:
                    state[:] = 0
            yield rows, states

    def weight(self, name: str) -> Floats:
        """A decoded weight: a vector, or a matrix (rows, columns)."""
        if name not in self._weights:
            weight = self.program.weights[name]
            self._weights[name] = decode(weight.data, weight.type).reshape(weight.shape)
        return self._weights[name].astype(self._dtype, copy=False)

    def scales(self, rows: Rows) -> NDArray[np.float32]:
        """The scales that the sequences of these rows give the adapters, (rows, adapters); for experts, of tokens."""
        batch = self.batch
        owners = batch.sequences[self.selected] if rows is Rows.SELECTED else batch.sequences
        assert batch.scales is not None, "a program with adapters wants their scales"
        return batch.scales[owners]

    def forget_weights(self) -> None:
        """Frees the decoded weights."""
        self._weights.clear()

    def weight_rows(self, name: str, rows: NDArray[np.int32]) -> Floats:
        """Some rows of a matrix, which is not decoded as a whole."""
        weight = self.program.weights[name]
        return decode(weight.data[rows], weight.type).astype(self._dtype, copy=False)
