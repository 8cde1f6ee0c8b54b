"""Measures a model's sensitivity to damage of one tensor: the divergence that each tensor causes alone.

For each tensor, only the operations after it are computed again: the residual stream before its block is kept for all
tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import Batch
from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.program import Program, Weight
from lltool.engine.reference.compare import divergences
from lltool.engine.segments import find_cuts, parallel_batch, part_from, part_until, weight_names
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.codec import decode

Floats = NDArray[np.float32]


def pick_windows(ids: Sequence[int], count: int, length: int, bos: int | None) -> NDArray[np.int32]:
    """`count` windows of `length` tokens, (windows, length), spread evenly over a text, each with `bos` first if given.

    A text that is too short gives fewer or shorter windows.
    """
    count = max(1, min(count, len(ids) // length))
    length = min(length, len(ids))
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    windows = np.array([ids[start : start + length] for start in starts], np.int32)
    if bos is not None:
        windows[:, 0] = bos
    return windows


def probe(
    program: Program,
    windows: NDArray[np.int32],
    names: Iterable[str],
    damage: Callable[[str, Floats], Floats],
    found: Callable[[str, float], None],
    *,
    threads: int,
) -> None:
    """Calls `found(name, divergence)` for each tensor of `names`, in the order of the program.

    The divergence is that between the program and the same program with `damage(name, weights)` in place of the
    tensor's weights: the mean over the tokens of `windows` without the first quarter of each, computed in float32.
    """
    wanted = set(names)
    count, length = windows.shape
    scored = (np.arange(count)[:, None] * length + np.arange(length // 4, length - 1)).ravel()
    batch, pages = parallel_batch(windows, scored)
    base = run_logits(program, batch, pages, threads)
    part, begun = program, 0
    while wanted:
        cut = next((cut for cut in find_cuts(part) if cut[0] > begun), None)
        stop = cut[0] if cut else len(part.ops)
        mine = [name for name in weight_names(part.ops[:stop]) if name in wanted]
        if mine:
            copies = {name: _as_floats(part.weights[name]) for name in mine}
            executor = _make_executor(replace(part, weights={**part.weights, **copies}), batch, pages, threads)
            for name in mine:
                values = copies[name].data.view(np.float32)
                intact = values.copy()
                values[:] = damage(name, intact)
                found(name, _mean_divergence(base, executor, batch))
                values[:] = intact
            wanted.difference_update(mine)
        if wanted:
            assert cut is not None, f"the program has no {sorted(wanted)}"
            everywhere = replace(batch, outputs=np.arange(windows.size, dtype=np.int32))
            kept = run_logits(part_until(part, cut), everywhere, pages, threads)
            part, begun = part_from(part, cut, kept), 1
            batch = replace(batch, tokens=everywhere.outputs)


def run_logits(program: Program, batch: Batch, pages: int, threads: int) -> Floats:
    """Logits (R, V) of all rows that `batch` requests, computed in float32."""
    executor = _make_executor(program, batch, pages, threads)
    executor.run(batch)
    count, step = len(batch.outputs), executor.head_rows
    return np.concatenate([executor.logits(i, min(count, i + step)).copy() for i in range(0, count, step)])


def _make_executor(program: Program, batch: Batch, pages: int, threads: int) -> CpuExecutor:
    return CpuExecutor(
        program,
        pages,
        slots=len(batch.slots),
        max_batch=len(batch.tokens),
        threads=threads,
        precision="f32",
        cache_type_k="f32",
        cache_type_v="f32",
    )


def _as_floats(weight: Weight) -> Weight:
    """A writable copy in float32."""
    values = decode(weight.data, weight.type)
    return Weight(weight.name, GGMLType.F32, weight.shape, np.array(values).view(np.uint8))


def _mean_divergence(base: Floats, executor: CpuExecutor, batch: Batch) -> float:
    executor.run(batch)
    step = executor.head_rows
    blocks = [base[i : i + step] for i in range(0, len(base), step)]
    parts = [divergences(block, executor.logits(i * step, i * step + len(block))) for i, block in enumerate(blocks)]
    return float(np.concatenate(parts).mean())
