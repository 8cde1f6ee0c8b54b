"""Parts of a program: run what lies behind a point again and again, without what comes before it.

Between two blocks of a transformer one buffer alone carries everything, the residual stream. There a program can be
cut: the values of that buffer, kept for each token of a batch, stand in for all that led to them.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch
from lltool.engine.program import Buffer, Embed, Linear, Norm, Op, Program, Select, Weight, inputs, outputs
from lltool.gguf.ggml_types import GGMLType

_KEPT = "(kept)"  # the name of the values that a later part begins with; no GGUF tensor is called so


Cut = tuple[int, Buffer]


def find_cuts(program: Program) -> list[Cut]:
    """The places in the body, ascending, where a single buffer is alive: number of the next operation, and the buffer.

    The first is behind the embedding, the last is where the head begins.
    """
    last_use = {buffer.id: i for i, op in enumerate(program.ops) for buffer in inputs(op)}
    alive: dict[int, Buffer] = {}
    cuts = []
    for i, op in enumerate(program.ops[: program.head + 1]):
        if len(alive) == 1:
            cuts.append((i, next(iter(alive.values()))))
        alive |= {buffer.id: buffer for buffer in outputs(op)}
        alive = {id: buffer for id, buffer in alive.items() if last_use.get(id, -1) > i}
    return cuts


def part_from(program: Program, cut: Cut, values: NDArray[np.float32]) -> Program:
    """The program behind `cut`; row i of `values` is what its buffer holds for a token with id i."""
    start, buffer = cut
    kept = Weight(_KEPT, GGMLType.F32, values.shape, np.ascontiguousarray(values).view(np.uint8))
    ops = (Embed(buffer, _KEPT), *program.ops[start:])
    return replace(program, ops=ops, head=program.head - start + 1, weights={**program.weights, _KEPT: kept})


def part_until(program: Program, cut: Cut) -> Program:
    """The program before `cut`; its logits are what the cut's buffer holds."""
    stop, buffer = cut
    out = Buffer(len(program.offsets), buffer.width)
    return replace(
        program,
        ops=(*program.ops[:stop], Select(buffer, out)),
        head=stop,
        offsets=(*program.offsets, -1),
        logits=out,
    )


def weight_names(ops: tuple[Op, ...]) -> list[str]:
    """The weights that operations read, in order, each once."""
    names: list[str | None] = []
    for op in ops:
        match op:
            case Embed() | Norm():
                names.append(op.weight)
            case Linear():
                names += [*op.weights, *op.biases]
    return list(dict.fromkeys(name for name in names if name is not None))


def parallel_batch(windows: NDArray[np.int32], outputs: NDArray[np.integer]) -> tuple[Batch, int]:
    """A batch of new sequences, one a row of `windows`, and the pages of cache that it needs."""
    count, length = windows.shape
    pages = -(-length // PAGE)
    batch = Batch(
        tokens=windows.ravel(),
        positions=np.tile(np.arange(length, dtype=np.int32), count),
        sequences=np.repeat(np.arange(count, dtype=np.int32), length),
        tables=np.arange(count * pages, dtype=np.int32).reshape(count, pages),
        outputs=outputs.astype(np.int32),
    )
    return batch, count * pages
