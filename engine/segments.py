"""Splits a program in two, so that its second part can run many times on the stored results of the first.

Between two blocks of a transformer, a single buffer is alive: the residual stream. A program can be cut there, because
the values of that buffer for each token of a batch are all that the second part needs.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch
from lltool.engine.operations.embed import Embed
from lltool.engine.operations.select import Select
from lltool.engine.program import Buffer, Operation, Program, Rows, Weight
from lltool.gguf.ggml_types import GGMLType

_KEPT = "(kept)"  # the name of the stored values that a second part begins with; no GGUF tensor has it


Cut = tuple[int, Buffer]


def find_cuts(program: Program) -> list[Cut]:
    """The places in the body, ascending, where a single buffer is alive: index of the next operation, and the buffer.

    The first place is after the embedding, the last where the head begins.
    """
    last_use = {buffer.id: i for i, op in enumerate(program.ops) for buffer in op.inputs}
    alive: dict[int, Buffer] = {}
    cuts = []
    for i, op in enumerate(program.ops[: program.head + 1]):
        if len(alive) == 1:
            cuts.append((i, next(iter(alive.values()))))
        alive |= {buffer.id: buffer for buffer in op.outputs}
        alive = {id: buffer for id, buffer in alive.items() if last_use.get(id, -1) > i}
    return cuts


def part_from(program: Program, cut: Cut, values: NDArray[np.float32]) -> Program:
    """The part of the program after `cut`; row i of `values` is what the cut's buffer holds for token id i."""
    start, buffer = cut
    kept = Weight(_KEPT, GGMLType.F32, values.shape, np.ascontiguousarray(values).view(np.uint8))
    ops = (Embed(buffer, _KEPT, len(values)), *program.ops[start:])
    return replace(program, ops=ops, weights={**program.weights, _KEPT: kept})


def part_until(program: Program, cut: Cut) -> Program:
    """The part of the program before `cut`; its logits are what the cut's buffer holds."""
    stop, buffer = cut
    out = Buffer(len(program.offsets), buffer.width, Rows.SELECTED)
    ops = (*program.ops[:stop], Select(buffer, out))
    return replace(program, ops=ops, offsets=(*program.offsets, -1), logits=out)


def weight_names(ops: tuple[Operation, ...]) -> list[str]:
    """The names of the weights that operations read, in order and without duplicates."""
    return list(dict.fromkeys(name for op in ops for name in op.weight_shapes))


def parallel_batch(windows: NDArray[np.int32], outputs: NDArray[np.integer]) -> tuple[Batch, int]:
    """A batch with a new sequence for each row of `windows`, and the number of cache pages that it needs.

    It names a slot for each sequence too, of which a program without states of fixed size needs none.
    """
    count, length = windows.shape
    pages = -(-length // PAGE)
    batch = Batch(
        tokens=windows.ravel(),
        positions=np.tile(np.arange(length, dtype=np.int32), count),
        sequences=np.repeat(np.arange(count, dtype=np.int32), length),
        tables=np.arange(count * pages, dtype=np.int32).reshape(count, pages),
        outputs=outputs.astype(np.int32),
        slots=np.arange(count, dtype=np.int32),
    )
    return batch, count * pages
