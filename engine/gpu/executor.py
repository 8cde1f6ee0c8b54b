"""The executor for a device: it prepares the launches of a program once for each number of rows, then replays them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import Batch, CacheType, Precision
from lltool.engine.executor import Observation
from lltool.engine.gpu.device import Device, Launch
from lltool.engine.gpu.memory import ITEM_BYTES, Arena, Cache, State
from lltool.engine.gpu.operations import KERNELS
from lltool.engine.gpu.recorder import Recorder, Weights
from lltool.engine.operations.attention import Attention
from lltool.engine.operations.embed import Embed, EmbedPositions, EmbedTypes
from lltool.engine.program import Operation, Program, Rows
from lltool.engine.reference.compare import compare_rows, score_rows
from lltool.gguf.errors import InputError
from lltool.quant.codec import decode

HEAD_ROWS = 32
_MOST_RECORDED = 24  # numbers of rows whose launches are kept


class GpuExecutor:
    """Runs a Program on a device.

    `precision` int8 rounds the activations of products with quantized matrices to int8, with a scale for each 32, where
    there are few rows; many rows, and f32, multiply decoded weights with floats.
    """

    def __init__(
        self,
        program: Program,
        pages: int,
        device: Device,
        *,
        max_batch: int,
        precision: Precision = "int8",
        cache_type_k: CacheType = "f16",
        cache_type_v: CacheType = "f16",
        threads: int = 1,
    ) -> None:
        check_program(program)
        for name, type in (("-ctk", cache_type_k), ("-ctv", cache_type_v)):
            if type not in ITEM_BYTES:
                raise InputError(f"{name} {type}: a GPU keeps its cache in {', '.join(ITEM_BYTES)}; or use -ngl 0")
        self.head_rows = min(HEAD_ROWS, max_batch)
        self.device = device
        self._program, self._precision = program, precision
        assert Rows.SEQUENCE not in program.arena_widths
        self._most = {Rows.TOKEN: max_batch, Rows.ASSIGNMENT: max_batch, Rows.SELECTED: self.head_rows}
        self._arena = Arena(device, program, self._most)
        self._cache = Cache(device, program, pages, cache_type_k, cache_type_v)
        self._state = State(device, max_batch, self.head_rows)
        self._weights = Weights(device, program, threads)
        for op in program.ops:
            for name in op.multiplied:
                self._weights.matrix(name)
        self._scratch: dict[str, tuple[int, Any]] = {}
        self._recorded: dict[tuple[bool, int, int], list[Launch]] = {}
        attentions = [op for op in program.ops if isinstance(op, Attention)]
        self._head_dim = max((op.head_dim for op in attentions), default=1)
        self._outputs = np.empty(0, np.int32)
        self._tokens = 0
        self._batch: Batch | None = None
        self._crossing: NDArray[np.float32] | None = None

    def run(self, batch: Batch, crossing: NDArray[np.float32] | None = None) -> None:
        """Runs the body; `crossing` has the rows of a program that begins after a cut (engine/segments.py)."""
        self._outputs, self._tokens = batch.outputs, len(batch.tokens)
        if self._state.reserve_tables(batch.tables.size):
            self._recorded.clear()
        launches = self._prepare(is_head=False, rows=0)
        self._batch, self._crossing = batch, crossing
        self._state.upload(batch)
        for launch in launches:
            launch()

    def logits(self, start: int, stop: int) -> NDArray[np.float32]:
        rows = stop - start
        assert rows <= self.head_rows
        launches = self._prepare(is_head=True, rows=rows)
        self.device.upload(self._state.selected, self._outputs[start:stop])
        for launch in launches:
            launch()
        logits = np.empty((rows, self._program.logits.width), np.float32)
        self.device.download(self._arena.memory, logits, self._arena.place(self._program.logits) * 4)
        return logits

    def score(self, start: int, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        return score_rows(self.logits, self.head_rows, start, targets)

    def compare(self, start: int, base: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        return compare_rows(base, self.logits(start, start + len(targets)), targets)

    def take_observations(self) -> dict[str, Observation]:
        return {}

    def copy_page(self, source: int, target: int) -> None:
        self._cache.copy_page(source, target)

    def _embed(self, op: Embed | EmbedPositions | EmbedTypes) -> None:
        """Decodes the rows of a table for the batch, or takes those that cross a cut, and copies them."""
        batch, weight = self._batch, self._program.weights[op.weight]
        assert batch is not None
        if self._crossing is not None and op is self._program.ops[0]:
            values = self._crossing
        elif isinstance(op, Embed):
            values = decode(weight.data[batch.tokens], weight.type) * np.float32(op.scale)
        else:
            rows = batch.positions if isinstance(op, EmbedPositions) else batch.token_types
            values = decode(weight.data[rows], weight.type)
        self.device.upload(self._arena.memory, values, self._arena.place(op.out) * 4)

    def _prepare(self, *, is_head: bool, rows: int) -> list[Launch]:
        """The launches of the body for the batch's tokens, or of the head for so many of them."""
        key = (is_head, self._tokens, rows)
        if key not in self._recorded:
            if len(self._recorded) >= _MOST_RECORDED:
                self._recorded.pop(next(iter(self._recorded)))
            counts = {Rows.TOKEN: self._tokens, Rows.ASSIGNMENT: self._tokens, Rows.SELECTED: rows}
            recorder = Recorder(
                self.device,
                self._program,
                self._weights,
                self._arena,
                self._cache,
                self._state,
                self._scratch,
                counts,
                self._most,
                self._precision,
                self._head_dim,
                self._embed,
            )
            ops = self._program.ops[self._program.head :] if is_head else self._program.ops[: self._program.head]
            for op in ops:
                KERNELS[type(op)](recorder, op)
            self._recorded[key] = recorder.launches
        return self._recorded[key]


def check_program(program: Program) -> None:
    """Raises InputError if the program has an operation without a kernel for devices."""
    missing: list[type[Operation]] = [type(op) for op in program.ops if type(op) not in KERNELS]
    if missing:
        names = ", ".join(dict.fromkeys(kind.__name__ for kind in missing))
        raise InputError(f"no GPU kernel for the operation {names}, which this model needs; use -ngl 0")
