"""The native executor: it translates a Program once into native operations, then runs each batch in one call."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch, CacheType, Precision
from lltool.engine.cpu import _native
from lltool.engine.cpu.fuse import fuse
from lltool.engine.cpu.kernels import KERNELS
from lltool.engine.cpu.target import Target
from lltool.engine.cpu.threads import Threads
from lltool.engine.executor import Observation
from lltool.engine.operations.observe import Observe
from lltool.engine.program import Operation, Program, Rows
from lltool.engine.reference.compare import Compared
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.quant import isa

assert _native.PAGE_TOKENS == PAGE

# Rows of logits that are computed at once: with 151936 floats each they take 19 MB, and 32 tokens share each read of
# a tile of weights.
HEAD_ROWS = 32


class CpuExecutor:
    """Runs a Program on CPU threads.

    `precision` int8 rounds the activations of quantized linears to int8, with a scale for each 32 (as llama.cpp does);
    f32 decodes the weights and computes in float32, as products with float weights always do. The arrays of weights are
    read in place.
    """

    def __init__(
        self,
        program: Program,
        pages: int,
        *,
        slots: int = 0,
        max_batch: int,
        threads: int | Threads,
        precision: Precision = "int8",
        cache_type_k: CacheType = "f16",
        cache_type_v: CacheType = "f16",
        deterministic: bool = False,
        instruction_set: str | None = None,
    ) -> None:
        for op in program.ops:
            if type(op) not in KERNELS:
                raise InputError(
                    f"the cpu executor has no kernel for the operation {type(op).__name__}, which this model needs; "
                    'load it with executor="reference"'
                )
        self.head_rows = min(HEAD_ROWS, max_batch)
        self._program = program
        self._observers: list[Observe] = []
        teams, sets = Threads.of(threads), _native.available_isas()
        if instruction_set is not None and instruction_set not in sets:
            raise InputError(f"instruction_set {instruction_set!r}, wanted one of {', '.join(sets)}")
        assert Rows.SEQUENCE not in program.arena_widths, "the native arena has room for max_batch tokens"
        bases = dict(zip(program.arena_widths, accumulate(program.arena_widths.values(), initial=0), strict=False))
        self._native = _native.Executor(
            isa=instruction_set or isa.chosen(),
            decode=teams.decode.places(),
            batch=teams.batch.places(),
            poll=teams.poll,
            max_batch=max_batch,
            head_rows=self.head_rows,
            arena_width=sum(program.arena_widths.values()),
            vocabulary=program.logits.width,
            pages=pages,
            slots=slots,
            int8=precision == "int8",
            k_type=int(GGMLType[cache_type_k.upper()]),
            v_type=int(GGMLType[cache_type_v.upper()]),
            deterministic=deterministic,
        )
        self._native_index: list[int] = []  # for each operation of the program: the native one that it is part of
        for fused in fuse(program):
            to = Target(self._native, program, bases, (cache_type_k, cache_type_v), self._observers, fused)
            KERNELS[type(fused.op)](to, fused.op)
            for op, group in fused.after:
                KERNELS[type(op)](replace(to, group=group), op)
            self._native_index += [self._native.operations() - 1] * len(fused.ops)
        self._native.finish()

    def run(self, batch: Batch) -> None:
        self._native.run(
            *(batch.tokens, batch.positions, batch.sequences, batch.tables),
            *(batch.outputs, batch.slots, batch.types, batch.scales),
        )

    def logits(self, start: int, stop: int) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._native.logits(start, stop)
        return rows

    def score(self, start: int, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """The log probability of targets[i] under output row start + i; only one block of logits exists at a time."""
        out = np.empty(len(targets), np.float64)
        self._native.score(start, targets, out)
        return out

    def compare(self, start: int, base: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        out = np.empty((len(targets), len(Compared)), np.float64)
        self._native.compare(start, base, targets, out)
        return out

    def take_observations(self) -> dict[str, Observation]:
        taken = {}
        for index, op in enumerate(self._observers):
            seen = Observation.nothing(op.experts, op.x.width)
            self._native.take_sums(index, seen.sums, seen.rows)
            taken.update(dict.fromkeys(op.weights, Observation(op.columns(seen.sums), seen.rows)))
        return taken

    def take_times(self) -> list[tuple[tuple[Operation, ...], float]]:
        """The seconds that each group of fused operations took since the last call; the first call starts the clock."""
        together: dict[int, list[Operation]] = {}
        for op, index in zip(self._program.ops, self._native_index, strict=True):
            together.setdefault(index, []).append(op)
        times = self._native.take_times()
        return [(tuple(ops), times[index] * 1e-9) for index, ops in together.items()]

    def copy_page(self, source: int, target: int) -> None:
        self._native.copy_page(source, target)

    def copy_slot(self, source: int, target: int) -> None:
        self._native.copy_slot(source, target)

    @property
    def page_bytes(self) -> int:
        bytes: int = self._native.page_bytes()
        return bytes

    @property
    def slot_bytes(self) -> int:
        bytes: int = self._native.slot_bytes()
        return bytes

    def read_page(self, page: int) -> bytes:
        data: bytes = self._native.read_page(page)
        return data

    def write_page(self, page: int, data: bytes) -> None:
        self._native.write_page(page, data)

    def read_slot(self, slot: int) -> bytes:
        data: bytes = self._native.read_slot(slot)
        return data

    def write_slot(self, slot: int, data: bytes) -> None:
        self._native.write_slot(slot, data)
