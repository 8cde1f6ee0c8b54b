"""Vectors and scores of texts: one row a text, pooled from the last hidden states of its tokens."""

from collections.abc import Iterator
from collections.abc import Sequence as List

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE
from lltool.engine.inputs import token_ids
from lltool.engine.logits import Logits
from lltool.engine.model import Model, Tokens
from lltool.engine.models.pooling import Pooling
from lltool.engine.pieces import check_choice
from lltool.engine.scheduler import Scheduler, Taken, Task
from lltool.gguf.errors import InputError

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


def embed(model: Model, texts: List[Tokens], *, pooling: Pooling | None = None, normalize: bool = True) -> Floats:
    """The embeddings of texts of token ids, (N, width), pooled as the file says; a decoder's can be another `pooling`.

    `model` is loaded with output="pooled", which takes the pooling of an encoder. Texts run together as far as its
    batch or its cache has room. With `normalize`, vectors have length 1. Raises InputError for a reranker, an empty
    text and one that is longer than the model's context.
    """
    config = model.config
    if config.pooling.ranks:
        raise InputError(f"{model.file.path}: a reranker gives scores of documents, not vectors; lltool rerank runs it")
    if config.is_causal:
        model.check_gives("hidden", "pooled")
        vectors = _embed_causal(model, texts, pooling or config.pooling.kind)
    else:
        if pooling not in (None, config.pooling.kind):
            raise InputError(f"pooling {pooling!r}, but the model was loaded for {config.pooling.kind!r}; load it anew")
        vectors = pool_texts(model, texts).astype(np.float64)
    return (normalized(vectors) if normalize else vectors).astype(np.float32)


def normalized(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Vectors (N, width) divided by their lengths; one that is all zero stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def pool_texts(model: Model, texts: List[Tokens], types: List[Tokens] | None = None) -> Floats:
    """What an encoder or a reranker, loaded with output="pooled", makes of each text: (N, width) or (N, labels).

    `types` are those of each text's tokens. Raises InputError as `embed` does.
    """
    model.check_gives("pooled")
    ids = [_checked(model, text) for text in texts]
    out = np.empty((len(ids), model.program.logits.width), np.float32)
    if model.config.is_causal:
        _run_tasks(model, [_RankedText(text, row) for text, row in zip(ids, out, strict=True)])
        return out
    chosen = -1 if model.config.pooling.kind == "last" else 0
    for group in _groups(model, ids):
        with model.turn():
            sequences = [model.new_sequence() for _ in group]
            try:
                pieces = [
                    (sequence, ids[index], np.array([chosen % len(ids[index])]))
                    for sequence, index in zip(sequences, group, strict=True)
                ]
                rows = model.forward(pieces, None if types is None else [types[index] for index in group])
                for start, block in rows.states():
                    out[group[start : start + len(block)]] = block
            finally:
                for sequence in sequences:
                    sequence.free()
    return out


def _checked(model: Model, text: Tokens) -> Ids:
    ids = token_ids(text, model.config.vocab)
    if not len(ids):
        raise InputError("an empty text: wanted at least one token")
    if len(ids) > model.context:
        raise InputError(
            f"{len(ids)} tokens do not fit the context of {model.context}; "
            "load the model with a larger one or shorten the text"
        )
    return ids


def _groups(model: Model, texts: List[Ids]) -> Iterator[list[int]]:
    """The indices of texts that fill a batch. No text is padded, so their order does not matter."""
    group: list[int] = []
    tokens = pages = 0
    for index, text in enumerate(texts):
        wanted = -(-len(text) // PAGE)
        if group and (tokens + len(text) > model.batch or pages + wanted > model.setup.pages):
            yield group
            group, tokens, pages = [], 0, 0
        group.append(index)
        tokens, pages = tokens + len(text), pages + wanted
    if group:
        yield group


def _embed_causal(model: Model, texts: List[Tokens], pooling: Pooling) -> NDArray[np.float64]:
    check_choice("pooling", pooling, ("mean", "last"))
    tasks = [_PooledText(token_ids(ids, model.config.vocab), pooling, model.config.width) for ids in texts]
    _run_tasks(model, tasks)
    return np.array([task.sum / task.rows for task in tasks]).reshape(len(tasks), model.config.width)


class _Text(Task):
    """A text whose rows are added up, in `sum`."""

    sum: NDArray[np.floating]


class _PooledText(_Text):
    """A text and the sum of the states that are pooled."""

    def __init__(self, ids: Ids, pooling: Pooling, width: int) -> None:
        # A text takes no prefix from another one when states of the prefix are wanted too: `first` is 0.
        super().__init__(ids, first=0 if pooling == "mean" else len(ids) - 1, limit=len(ids))
        self.sum, self.rows = np.zeros(width), len(ids) if pooling == "mean" else 1


class _RankedText(_Text):
    """A text, and the row for its scores, which are computed after its last token."""

    def __init__(self, ids: Ids, row: Floats) -> None:
        super().__init__(ids, first=len(ids) - 1, limit=len(ids))
        row[:] = 0
        self.sum = row


def _run_tasks(model: Model, tasks: List[_Text]) -> None:
    scheduler = Scheduler(model, keep=0)
    try:
        for task in tasks:
            scheduler.submit(task)
        while scheduler.step(_add_rows):
            pass
    finally:
        scheduler.free()


def _add_rows(rows: Logits, taken: List[Taken]) -> None:
    owners = np.repeat(np.arange(len(taken)), [len(each.rows) for each in taken])
    sums = np.zeros((len(taken), _text(taken[0]).sum.size))
    for start, block in rows.states():
        np.add.at(sums, owners[start : start + len(block)], block)
    for each, found in zip(taken, sums, strict=True):
        text = _text(each)
        text.sum += found
        text.is_over = text.evaluated == len(text.ids)


def _text(taken: Taken) -> _Text:
    assert isinstance(taken.task, _Text)
    return taken.task
