"""Scores of documents for a query, and the token ids of texts and pairs as encoders and rerankers take them."""

import re
from collections.abc import Sequence as List

import numpy as np
from numpy.typing import NDArray

from lltool.engine.embed import pool_texts
from lltool.engine.model import Model
from lltool.gguf.errors import InputError

TEMPLATE_KEY = "tokenizer.chat_template.rerank"
"""A prompt with {query} and {document} in it, as llama.cpp writes it for Qwen3-Reranker."""

Ids = list[int]


def encode_text(model: Model, text: str, *, truncate: bool = False) -> Ids:
    """The ids of a text. With `truncate`, one that is too long loses its end, but not the tokens put around texts.

    Raises InputError for a text without tokens of its own, and without `truncate` for one that is too long.
    """
    tokenizer = model.tokenizer
    if not text.strip():
        raise InputError("an empty text: wanted at least one token")
    begin, end = _around(model)
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    if begin and ids[:1] == begin:
        ids = ids[1:]
    return begin + _cut(ids, model.context - len(begin) - len(end), model, truncate) + end


def encode_pair(model: Model, query: str, document: str, *, truncate: bool = False) -> tuple[Ids, Ids]:
    """The ids of a query and a document, and the type of each: 1 for those of the document if the model tells them.

    With `truncate`, a document that is too long loses its end. Raises InputError as `encode_text` does.
    """
    for name, text in (("query", query), ("document", document)):
        if not text.strip():
            raise InputError(f"an empty {name}: wanted at least one token")
    tokenizer = model.tokenizer
    stated = model.file.metadata.get(TEMPLATE_KEY)
    if stated is not None:
        first, last, end = *_fill(str(stated.data), query), list[int]()
        before = tokenizer.with_begin(tokenizer.encode(first, add_special=False, parse_special=True))
        whole = tokenizer.encode(first + document + last, add_special=False, parse_special=True)
        whole = tokenizer.with_begin(whole)
        if len(whole) > model.context:
            _refuse_long(len(whole), model, truncate)
            end = tokenizer.encode(last, add_special=False, parse_special=True)
            _cut_query(before, end, model)
            whole = whole[: model.context - len(end)] + end
        return whole, [0] * len(whole)
    begin, end = _around(model)
    asked, told = (tokenizer.encode(text, add_special=False, parse_special=True) for text in (query, document))
    middle = end + ([tokenizer.sep] if tokenizer.add_eos and tokenizer.add_sep and tokenizer.sep is not None else [])
    first_ids = begin + asked + middle
    _cut_query(first_ids, end, model)
    second = _cut(told, model.context - len(first_ids) - len(end), model, truncate) + end
    table = model.program.weights.get("token_types.weight")
    return first_ids + second, [0] * len(first_ids) + [int(table is not None and table.rows > 1)] * len(second)


def rank(
    model: Model, query: str, documents: List[str], *, truncate: bool = False, probabilities: bool = False
) -> NDArray[np.float64]:
    """The score of each document, (N,); the model is a reranker loaded with output="pooled".

    A classifier with one label gives any number, of which `probabilities` makes one from 0 to 1; of one with the labels
    yes and no, it is the probability of yes. Raises InputError for a model that is none, and as `encode_pair` does.
    """
    check_ranks(model)
    pairs = [encode_pair(model, query, document, truncate=truncate) for document in documents]
    return score_pairs(model, pairs, probabilities=probabilities)


def check_ranks(model: Model) -> None:
    """Raises InputError for a model that is not a reranker."""
    if not model.config.pooling.ranks:
        what = "a decoder" if model.config.is_causal else "an encoder"
        raise InputError(f"{model.file.path}: {what} without a classifier, not a reranker; lltool embed makes vectors")


def score_pairs(model: Model, pairs: List[tuple[Ids, Ids]], *, probabilities: bool = False) -> NDArray[np.float64]:
    """What `rank` gives, of pairs of ids and types."""
    return read_scores(model, pool_pairs(model, pairs), probabilities=probabilities)


def pool_pairs(model: Model, pairs: List[tuple[Ids, Ids]]) -> NDArray[np.float32]:
    """The classifier's outputs for each pair of ids and types, (N, labels)."""
    has_types = "token_types.weight" in model.program.weights
    return pool_texts(model, [ids for ids, _ in pairs], [types for _, types in pairs] if has_types else None)


def read_scores(model: Model, rows: NDArray[np.float32], *, probabilities: bool = False) -> NDArray[np.float64]:
    """What `rank` gives, of a classifier's outputs (N, labels)."""
    logits = rows.astype(np.float64)
    if logits.shape[1] == 1:
        scores: NDArray[np.float64] = logits[:, 0]
        return 0.5 + 0.5 * np.tanh(0.5 * scores) if probabilities else scores
    stated = model.file.metadata.get(f"{model.config.architecture}.classifier.output_labels")
    labels = [str(label).lower() for label in stated.data] if stated is not None else []
    if sorted(labels) != ["no", "yes"] or logits.shape[1] != 2:
        raise InputError(
            f"{model.file.path}: a classifier with {logits.shape[1]} labels, wanted a reranker's one, or yes and no"
        )
    yes = labels.index("yes")
    return 0.5 + 0.5 * np.tanh(0.5 * (logits[:, yes] - logits[:, 1 - yes]))


def _around(model: Model) -> tuple[Ids, Ids]:
    """The tokens that the model wants before a text and after it."""
    tokenizer = model.tokenizer
    end = tokenizer.eos if tokenizer.add_eos else tokenizer.sep if tokenizer.add_sep else None
    return tokenizer.with_begin([]), [] if end is None else [end]


def _cut(ids: Ids, room: int, model: Model, truncate: bool) -> Ids:
    if len(ids) > room:
        _refuse_long(model.context - room + len(ids), model, truncate)
    return ids[: max(room, 0)]


def _refuse_long(count: int, model: Model, truncate: bool) -> None:
    if not truncate:
        raise InputError(f"{count} tokens do not fit the context of {model.context}; shorten the text or truncate it")


def _cut_query(before: Ids, after: Ids, model: Model) -> None:
    if len(before) + len(after) >= model.context:
        raise InputError(f"a query of {len(before)} tokens leaves no room for documents in {model.context}")


def _fill(template: str, query: str) -> tuple[str, str]:
    """The template before the document and after it, with the query in place."""
    parts = re.split(r"\{document\}", template)
    if len(parts) != 2:
        raise InputError(f"{TEMPLATE_KEY}: wanted {{document}} once")
    return parts[0].replace("{query}", query), parts[1].replace("{query}", query)
