"""The memory of an executor on a device: activations, cache, and what a batch says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch
from lltool.engine.gpu.device import Device
from lltool.engine.program import Buffer, Program, Rows
from lltool.engine.state import StateLayout

ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}  # of the types that the cache can have


class Arena:
    """All activations, in one memory of floats. A buffer is a matrix of the most rows that its kind can have."""

    def __init__(self, device: Device, program: Program, most_rows: Mapping[Rows, int]) -> None:
        self._program, self._most = program, most_rows
        self._bases: dict[Rows, int] = {}
        size = 0
        for kind, width in program.arena_widths.items():
            self._bases[kind] = size
            size += width * most_rows[kind]
        self._logits = size
        widest = max(
            [program.logits.width, *(b.width for op in program.ops for b in op.outputs if self._is_outside(b))]
        )
        size += widest * most_rows[Rows.SELECTED]
        self.memory = device.allocate(size * 4)
        self.bytes = size * 4

    def _is_outside(self, buffer: Buffer) -> bool:
        return self._program.offsets[buffer.id] < 0

    def place(self, buffer: Buffer) -> int:
        """Where a buffer begins, in floats."""
        if self._is_outside(buffer):
            return self._logits
        return self._bases[buffer.rows] + self._program.offsets[buffer.id] * self._most[buffer.rows]


class Cache:
    """Keys and values by layer, (pages * PAGE, heads, width)."""

    def __init__(self, device: Device, program: Program, pages: int, key_type: str, value_type: str) -> None:
        self._device, self.types = device, (key_type, value_type)
        self.keys: dict[int, Any] = {}
        self.values: dict[int, Any] = {}
        self._parts: list[tuple[Any, int]] = []  # each memory, and the bytes of a token in it
        for kv in StateLayout.of(program).key_values:
            size = kv.heads * kv.key_dim * ITEM_BYTES[key_type]
            self.keys[kv.layer] = self.values[kv.layer] = device.allocate(pages * PAGE * size)
            self._parts.append((self.keys[kv.layer], size))
            if not kv.value_is_key:
                size = kv.heads * kv.value_dim * ITEM_BYTES[value_type]
                self.values[kv.layer] = device.allocate(pages * PAGE * size)
                self._parts.append((self.values[kv.layer], size))

    def copy_page(self, source: int, target: int) -> None:
        for memory, size in self._parts:
            self._device.copy(memory, source * PAGE * size, target * PAGE * size, PAGE * size)


class State:
    """What kernels read of a batch. The memories keep their places, so that launches can be prepared once."""

    def __init__(self, device: Device, most_tokens: int, most_outputs: int) -> None:
        self._device, self._most = device, most_tokens
        names = ("positions", "sequences", "starts", "ends", "places")
        self.of_tokens = {name: device.allocate(most_tokens * 4) for name in names}
        self.selected = device.allocate(most_outputs * 4)
        self._tables_size = 0
        self.tables: Any = None
        self.turns: dict[tuple[tuple[float, ...], float], Any] = {}
        self.factors: dict[tuple[float, int, int], Any] = {}
        self.reserve_tables(1024)

    def reserve_tables(self, count: int) -> bool:
        """Makes room for so many page numbers; returns whether the memory is a new one."""
        if count <= self._tables_size:
            return False
        self._tables_size = 2 * count
        self.tables = self._device.allocate(self._tables_size * 4)
        return True

    def turns_of(self, frequencies: tuple[float, ...], magnitude: float) -> Any:
        """The memory of the cosines and sines of every token, (T, pairs, 2)."""
        key = (frequencies, magnitude)
        if key not in self.turns:
            self.turns[key] = self._device.allocate(self._most * len(frequencies) * 8)
        return self.turns[key]

    def factors_of(self, factor: float, length: int, offset: int) -> Any:
        """The memory of what ScaleByPosition multiplies each token with."""
        key = (factor, length, offset)
        if key not in self.factors:
            self.factors[key] = self._device.allocate(self._most * 4)
        return self.factors[key]

    def upload(self, batch: Batch) -> None:
        """Copies what a batch says. Angles are computed here, because a device may have no doubles."""
        positions, sequences = batch.positions, batch.sequences
        pages = batch.tables.shape[1]
        last = np.zeros(len(batch.tables), np.int32)
        np.maximum.at(last, sequences, positions + 1)
        values = {
            "positions": positions,
            "sequences": sequences,
            "starts": sequences * np.int32(pages),
            "ends": last[sequences],
            "places": batch.tables[sequences, positions // PAGE] * PAGE + positions % PAGE,
        }
        for name, array in values.items():
            self._device.upload(self.of_tokens[name], array.astype(np.int32, copy=False))
        self._device.upload(self.tables, batch.tables)
        for (frequencies, magnitude), memory in self.turns.items():
            angles = positions[:, None] * np.array(frequencies)
            turns = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * magnitude
            self._device.upload(memory, turns.astype(np.float32))
        for (factor, length, offset), memory in self.factors.items():
            passed = (positions.astype(np.int64) + offset) // length
            self._device.upload(memory, (1 + factor * np.log1p(passed)).astype(np.float32))


def vector_of(values: NDArray[Any] | Sequence[float]) -> NDArray[np.float32]:
    """Values as the one row of floats that a kernel reads."""
    return np.ascontiguousarray(np.asarray(values, np.float32).reshape(-1))
