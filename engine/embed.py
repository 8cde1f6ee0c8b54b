"""Embeddings: one vector a text, pooled from the last hidden states of its tokens."""

from collections.abc import Sequence as List
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lltool.engine.inputs import token_ids
from lltool.engine.logits import Logits
from lltool.engine.model import Model, Tokens
from lltool.engine.scheduler import Scheduler, Taken, Task
from lltool.gguf.errors import InputError

Pooling = Literal["mean", "last"]


def embed(
    model: Model, texts: List[Tokens], *, pooling: Pooling = "mean", normalize: bool = True
) -> NDArray[np.float32]:
    """The embeddings of texts of token ids, (N, width): the mean of their tokens' normed states, or the last of them.

    `model` is loaded with output="hidden"; texts run together as far as its cache has room. With `normalize`, vectors
    have length 1. Raises InputError for an empty text and one that is longer than the model's context.
    """
    model.check_gives("hidden")
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling {pooling!r}, wanted one of {', '.join(get_args(Pooling))}")
    tasks = [_PooledText(token_ids(ids, model.config.vocab), pooling, model.config.width) for ids in texts]
    scheduler = Scheduler(model, keep=0)
    try:
        for task in tasks:
            scheduler.submit(task)
        while scheduler.step(_add_rows):
            pass
    finally:
        scheduler.free()
    vectors = np.array([task.sum / task.rows for task in tasks]).reshape(len(tasks), model.config.width)
    if normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


class _PooledText(Task):
    """A text and the sum of the states that are pooled."""

    def __init__(self, ids: NDArray[np.int32], pooling: Pooling, width: int) -> None:
        # A text takes no prefix from another one when states of the prefix are wanted too: `first` is 0.
        super().__init__(ids, first=0 if pooling == "mean" else len(ids) - 1, limit=len(ids))
        self.sum, self.rows = np.zeros(width), len(ids) if pooling == "mean" else 1


def _add_rows(rows: Logits, taken: List[Taken]) -> None:
    owners = np.repeat(np.arange(len(taken)), [len(each.rows) for each in taken])
    sums = np.zeros((len(taken), _pooled(taken[0]).sum.size))
    for start, block in rows.states():
        np.add.at(sums, owners[start : start + len(block)], block)
    for each, found in zip(taken, sums, strict=True):
        text = _pooled(each)
        text.sum += found
        text.is_over = text.evaluated == len(text.ids)


def _pooled(taken: Taken) -> _PooledText:
    assert isinstance(taken.task, _PooledText)
    return taken.task
