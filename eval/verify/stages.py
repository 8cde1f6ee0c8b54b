"""A file's stages (the embedding, each block, the head) compared with another implementation's of the same model.

Every stage is computed twice in one batch: from what the file's own earlier stages gave, which shows how errors add up,
and from what the other implementation gave, so that a stage departs only by its own fault.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch
from lltool.engine.config import ModelConfig
from lltool.engine.models.architectures import trace_program
from lltool.engine.program import Operation, Program, read_weight
from lltool.engine.reference.compare import Compared, compare_rows
from lltool.engine.reference.context import Context
from lltool.engine.state import StateLayout
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.reader import GGUFFile
from lltool.quant.codec import ENCODED, decode, encode

Floats = NDArray[np.float32]

# A stage may depart by float32's rounding in another order, and by its matrices' rounding, which a block amplifies: its
# norms and softmax, and the activations of outlying columns. On SmolLM2 that comes to 0.1 to 0.3 of the sum over the
# matrices. With experts, rounding may change a token's choice. Above half of what a stage adds, nothing is left of it.
_FLOOR, _FACTOR, _WITH_EXPERTS, _MOST = 1e-5, 3.0, 16.0, 0.5

_HEAD_ROWS = 64


@dataclass(frozen=True)
class Answer:
    """What the other implementation computes for a prompt, `ids` (T,).

    `states` are the outputs of the embedding and of each block, each (T, width); `logits` are (T, V).
    """

    ids: NDArray[np.int32]
    states: Sequence[Floats]
    logits: Floats


@dataclass(frozen=True)
class Stage:
    """The comparison of a stage: squared errors over squared values, of what it adds and of its output.

    `error` is that of what the stage adds to the other implementation's state, and may be at most `limit`. `drift` is
    that of its output after the file's own earlier stages.
    """

    name: str
    error: float
    limit: float
    drift: float

    @property
    def departs(self) -> bool:
        return not self.error <= self.limit


@dataclass(frozen=True)
class LogitsComparison:
    """The logits of all tokens, from the file's own stages: NMSE (of centred logits), KL divergence in nats per token,
    and the shares of tokens with the same first choice and of shared choices among the first five."""

    tokens: int
    nmse: float
    divergence: float
    top1: float
    top5: float


def compare_stages(
    file: GGUFFile, answers: Sequence[Answer], progress: Callable[[int, int], None] | None = None
) -> tuple[list[Stage], LogitsComparison]:
    """Compares all stages and the logits. The weights of one block at a time are in memory.

    `progress` gets the stages done and their number. Raises InputError for a model that cannot be run.
    """
    weights = {tensor.name: read_weight(tensor) for tensor in file.tensors}
    config = ModelConfig.from_gguf(file.metadata, weights)
    config = replace(config, context=max(len(answer.ids) for answer in answers))
    program = trace_program(config, weights)
    count = sum(len(answer.ids) for answer in answers)
    context = _context(program, answers)
    stages: list[Stage] = []
    names = ["embedding", *(f"block {layer}" for layer in range(config.layers))]
    start, before = 0, np.zeros((count, 1), np.float32)
    for number, ((stop, buffer), name) in enumerate(zip(program.stages, names, strict=True)):
        ops = program.ops[start:stop]
        for op in ops:
            op.reference(context)
        found, wanted = context[buffer].copy(), np.concatenate([answer.states[number] for answer in answers])
        error = nmse(found[count:] - before, wanted - before)
        stages.append(Stage(name, error, _limit(program, ops), nmse(found[:count], wanted)))
        found[count:] = wanted
        context[buffer] = found
        context.forget_weights()
        start, before = stop, wanted
        if progress:
            progress(number + 1, len(names) + 1)
    head, logits = _compare_head(program, context, start, answers)
    if progress:
        progress(len(names) + 1, len(names) + 1)
    return [*stages, head], logits


def _compare_head(
    program: Program, context: Context, start: int, answers: Sequence[Answer]
) -> tuple[Stage, LogitsComparison]:
    for op in program.ops[start : program.head]:
        op.reference(context)
    wanted = np.concatenate([answer.logits for answer in answers])
    count, errors, totals = len(wanted), np.zeros(2), 0.0
    compared, shared = [], 0.0
    for first in range(0, count, _HEAD_ROWS):
        rows = np.arange(first, min(first + _HEAD_ROWS, count), dtype=np.int32)
        expected = _centred(wanted[rows])
        totals += float(np.square(expected).sum())
        for which, base in enumerate((0, count)):  # from own states, and from the other implementation's
            context.selected = rows + base
            for op in program.ops[program.head :]:
                op.reference(context)
            found = context[program.logits]
            errors[which] += np.square(_centred(found) - expected).sum()
            if which == 0:
                compared.append(compare_rows(wanted[rows], found, np.zeros(len(rows), np.int64)))
                best = [np.argpartition(-x, min(5, x.shape[1] - 1), axis=1)[:, :5] for x in (wanted[rows], found)]
                shared += sum(len({*one} & {*other}) / len(one) for one, other in zip(*best, strict=True))
    table = np.concatenate(compared)
    same = float(np.mean(table[:, Compared.BASE_TOP] == table[:, Compared.TOP]))
    own, local = (errors / totals).tolist()
    divergence = float(table[:, Compared.DIVERGENCE].mean())
    logits = LogitsComparison(count, own, divergence, same, shared / count)
    return Stage("head", local, _limit(program, program.ops[start:]), own), logits


def nmse(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    """The sum of squared errors over the sum of squares; infinite if `found` is not finite."""
    wide = wanted.astype(np.float64)
    error = float(np.square(found - wide).sum())
    if not np.isfinite(error):
        return float("inf")
    return error / max(float(np.square(wide).sum()), np.finfo(np.float64).tiny)


def _centred(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    centred: NDArray[np.float64] = wide - wide.mean(axis=1, keepdims=True)
    return centred


def _context(program: Program, answers: Sequence[Answer]) -> Context:
    """A context whose batch has each prompt twice: all prompts, then all of them again."""
    prompts = [answer.ids for answer in answers] * 2
    pages = [-(-len(ids) // PAGE) for ids in prompts]
    tables = np.zeros((len(prompts), max(pages)), np.int32)
    for row, (first, size) in enumerate(zip(np.cumsum([0, *pages[:-1]]).tolist(), pages, strict=True)):
        tables[row, :size] = np.arange(first, first + size)
    slots = len(prompts) if StateLayout.of(program).slots else 0
    context = Context(program, sum(pages), slots, np.float32, "f32", "f32")
    context.batch = Batch(
        np.concatenate(prompts).astype(np.int32),
        np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in prompts]),
        np.repeat(np.arange(len(prompts), dtype=np.int32), [len(ids) for ids in prompts]),
        tables,
        np.arange(sum(map(len, prompts)), dtype=np.int32),
        np.arange(slots, dtype=np.int32),
    )
    return context


def _limit(program: Program, ops: Sequence[Operation]) -> float:
    """The error that a stage may have, by the types of its matrices."""
    names = {name for op in ops for name in op.weight_shapes}
    factor = _WITH_EXPERTS if any(op.assigned for op in ops) else _FACTOR
    return min(_MOST, _FLOOR + factor * sum(rounding(program.weights[name].type) for name in names))


@cache
def rounding(type: GGMLType) -> float:
    """The squared error of a type relative to the squares of normally distributed weights."""
    if type == GGMLType.F32 or type not in ENCODED:
        return 0.0
    columns = max(1024, LAYOUT[type].block)
    weights = np.random.default_rng(0).standard_normal((64, columns)).astype(np.float32)
    return nmse(decode(encode(weights, type, np.ones(columns, np.float32)), type), weights)
