"""The native executor: translates a Program once into engine/csrc's operations; every batch is then one call."""

import numpy as np
from numpy.typing import NDArray

from lltool.engine import _native
from lltool.engine.batch import PAGE, Batch, CacheType, Precision
from lltool.engine.compare import Compared
from lltool.engine.fuse import Step, fuse
from lltool.engine.observe import Observation
from lltool.engine.program import (
    Add,
    Attention,
    Buffer,
    Embed,
    Gated,
    Linear,
    Norm,
    Observe,
    Op,
    Program,
    Rope,
    Scale,
    Select,
    Softcap,
    Weight,
)
from lltool.engine.threads import Threads
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.quant import isa
from lltool.quant.codec import decode

assert _native.PAGE_TOKENS == PAGE

# Logits are made for so many rows at once: 151936 floats a row are 19 MB, and a tile of weights still serves 32 tokens.
HEAD_ROWS = 32


class CpuExecutor:
    """Runs a Program on CPU threads.

    `precision` int8 rounds the activations of quantized linears to int8, 32 to a scale (as llama.cpp does); f32 decodes
    the weights and computes in float32. Float weights always do. The weights' arrays are read where they lie.
    """

    def __init__(
        self,
        program: Program,
        pages: int,
        *,
        max_batch: int,
        threads: int | Threads,
        precision: Precision = "int8",
        cache_type_k: CacheType = "f16",
        cache_type_v: CacheType = "f16",
        deterministic: bool = False,
        instruction_set: str | None = None,
    ) -> None:
        self.head_rows = min(HEAD_ROWS, max_batch)
        self._program = program
        self._cache_types = (GGMLType[cache_type_k.upper()], GGMLType[cache_type_v.upper()])
        self._observers: list[Observe] = []
        teams = Threads.of(threads)
        self._native = _native.Executor(
            isa=instruction_set or isa.chosen(),
            decode=teams.decode.places(),
            batch=teams.batch.places(),
            poll=teams.poll,
            max_batch=max_batch,
            head_rows=self.head_rows,
            arena_width=program.arena_width,
            vocabulary=program.logits.width,
            pages=pages,
            int8=precision == "int8",
            k_type=int(self._cache_types[0]),
            v_type=int(self._cache_types[1]),
            deterministic=deterministic,
        )
        self._steps: list[int] = []  # the native operation that a program's operation is part of
        for step in fuse(program):
            self._add_step(step)
            self._steps += [self._native.operations() - 1] * len(step.ops)
        self._native.finish()

    def run(self, batch: Batch) -> None:
        self._native.run(batch.tokens, batch.positions, batch.sequences, batch.tables, batch.outputs)

    def logits(self, start: int, stop: int) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._native.logits(start, stop)
        return rows

    def score(self, start: int, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """Log probability of targets[i] under output row start + i; logits are made and dropped a block at a time."""
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
            sums = np.empty(op.x.width)
            seen = Observation(sums, self._native.take_sums(index, sums))
            taken.update(dict.fromkeys(op.weights, seen))
        return taken

    def take_times(self) -> list[tuple[tuple[Op, ...], float]]:
        """Seconds since the last call of the operations that run together; the first call only starts the clock."""
        together: dict[int, list[Op]] = {}
        for op, step in zip(self._program.ops, self._steps, strict=True):
            together.setdefault(step, []).append(op)
        times = self._native.take_times()
        return [(tuple(ops), times[step] * 1e-9) for step, ops in together.items()]

    def copy_page(self, source: int, target: int) -> None:
        self._native.copy_page(source, target)

    def _place(self, buffer: Buffer) -> tuple[int, int]:
        return self._program.offsets[buffer.id], buffer.width

    def _matrix(self, name: str) -> Weight:
        return self._program.weights[name]

    def _vector(self, name: str | None) -> NDArray[np.float32]:
        if name is None:
            return np.empty(0, np.float32)
        weight = self._program.weights[name]
        return np.ascontiguousarray(decode(weight.data, weight.type).reshape(-1))

    def _add_step(self, step: Step) -> None:
        if isinstance(step.op, Linear):
            self._add_linear(step.op, step)
        else:
            self._add(step.op, groups=step.stores)
        for op, group in step.after:
            self._add(op, group)

    def _add_linear(self, op: Linear, step: Step) -> None:
        def part(index: int) -> tuple[tuple[int, int], int, int, NDArray[np.uint8], NDArray[np.float32]]:
            w = self._matrix(op.weights[index])
            return self._place(op.outs[index]), int(w.type), w.columns, w.data, self._vector(op.biases[index])

        norm = step.norm
        self._native.linear(
            self._place(norm.x if norm else op.x),
            [[part(index) for index in group] for group in step.groups],
            self._place(op.residual) if op.residual else None,
            (self._vector(norm.weight), norm.eps, norm.groups) if norm else None,
        )

    def _add(self, op: Op, group: int = -1, groups: tuple[int, int] = (-1, -1)) -> None:
        """`group` and `groups` (of k and v) are columns of the linear before, -1 for none."""
        native, place = self._native, self._place
        match op:
            case Embed(out, weight, scale):
                w = self._matrix(weight)
                native.embed(place(out), int(w.type), w.columns, w.data, scale)
            case Norm(x, out, weight, eps, norm_groups):
                native.norm(place(x), place(out), self._vector(weight), eps, norm_groups, group)
            case Rope(x, out, head_dim, frequencies, magnitude, interleaved):
                native.rope(place(x), place(out), head_dim, list(frequencies), magnitude, interleaved, group)
            case Attention(q, k, v, out, layer, heads, kv_heads, head_dim, scale, window, softcap, sinks):
                if head_dim > _native.MAX_HEAD_DIM or heads // kv_heads > _native.MAX_GROUP:
                    raise InputError(
                        f"layer {layer}: {heads} heads of {head_dim} on {kv_heads} key/value heads; the kernels take "
                        f"heads of at most {_native.MAX_HEAD_DIM}, and {_native.MAX_GROUP} on one key/value head"
                    )
                if head_dim % 32 and {GGMLType.Q8_0, GGMLType.Q4_0} & set(self._cache_types):
                    raise InputError(
                        f"layer {layer}: heads of {head_dim}; a cache of q8_0 or q4_0 wants a multiple of 32"
                    )
                sizes = (layer, heads, kv_heads, head_dim)
                places = (place(q), place(k), place(v), place(out))
                native.attention(*places, *sizes, scale, window, softcap, self._vector(sinks), groups)
            case Gated(gate, up, out, activation):
                native.elementwise(activation, place(gate), place(up), place(out), 0.0, group)
            case Add(x, y, out):
                native.elementwise("add", place(x), place(y), place(out), 0.0, group)
            case Scale(x, out, factor):
                native.elementwise("scale", place(x), place(x), place(out), factor, group)
            case Softcap(x, out, cap):
                native.elementwise("softcap", place(x), place(x), place(out), cap, group)
            case Select(x, out):
                native.select(place(x), place(out))
            case Observe(x):
                native.observe(place(x))
                self._observers.append(op)
            case _:
                raise AssertionError(f"no native operation for {op}")
