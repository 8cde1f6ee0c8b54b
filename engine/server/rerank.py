"""Scores of documents for a query: /v1/rerank as Jina, Cohere, TEI and llama-server have it, and vLLM's /v1/score."""

import time
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.embed import normalized
from lltool.engine.rank import read_scores
from lltool.engine.server.embeddings import Truncate
from lltool.engine.server.errors import bad_request
from lltool.engine.server.exchange import Exchange, read_fields
from lltool.engine.server.fields import Fields
from lltool.engine.server.served import Served
from lltool.gguf.errors import InputError

Raw = Annotated[bool, Field(description="the classifier's numbers as they are, not from 0 to 1")]


class Document(Fields):
    text: str


class RerankFields(Fields):
    """With `texts` in place of `documents`, the answer is TEI's."""

    model: str | None = None
    query: str
    documents: list[str | Document] | None = None
    texts: list[str] | None = None
    top_n: Annotated[int, Field(ge=1, le=1 << 31, description="so many of the best (default: all)")] | None = None
    return_documents: Annotated[bool, Field(description="with their texts")] = False
    return_text: bool = False
    raw_scores: Raw = False
    truncate: Truncate = False

    @model_validator(mode="after")
    def has_documents(self) -> "RerankFields":
        if (self.documents is None) == (self.texts is None):
            raise ValueError("wanted documents: a list of texts")
        return self


class ScoreFields(Fields):
    """vLLM's body: one text and several, or as many as there are others."""

    model: str | None = None
    text_1: str | list[str] = Field(validation_alias=AliasChoices("text_1", "queries"))
    text_2: str | list[str] = Field(validation_alias=AliasChoices("text_2", "documents", "items"))
    raw_scores: Raw = False
    truncate: Truncate = False


async def rerank(request: Request) -> Response:
    fields = await read_fields(request, RerankFields)
    with await Exchange.begin(request, fields.model) as exchange:
        return await exchange.answer(_rerank(exchange, fields))


async def _rerank(exchange: Exchange, fields: RerankFields) -> Any:
    """The best documents first; of equal scores, the one that was given first."""
    given = fields.texts if fields.documents is None else fields.documents
    documents = [each if isinstance(each, str) else each.text for each in given or []]
    pairs = [(fields.query, document) for document in documents]
    scores, count = await _scores(exchange, pairs, fields.raw_scores, truncate=fields.truncate, param="documents")
    best = np.argsort(-scores, kind="stable")[: fields.top_n].tolist()
    if fields.documents is None:
        shown = [{"index": index, "score": float(scores[index])} for index in best]
        return [{**each, "text": documents[each["index"]]} if fields.return_text else each for each in shown]
    results = []
    for index in best:
        document = {"document": {"text": documents[index]}} if fields.return_documents else {}
        results.append({"index": index, "relevance_score": float(scores[index]), **document})
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"id": uuid4().hex, "object": "list", "model": exchange.served.name, "usage": usage, "results": results}


async def score(request: Request) -> Response:
    fields = await read_fields(request, ScoreFields)
    with await Exchange.begin(request, fields.model) as exchange:
        return await exchange.answer(_score(exchange, fields))


async def _score(exchange: Exchange, fields: ScoreFields) -> dict[str, Any]:
    first, second = ([each] if isinstance(each, str) else each for each in (fields.text_1, fields.text_2))
    if not first or len(first) not in (1, len(second)):
        raise bad_request(f"text_1: {len(first)} texts for {len(second)} of text_2, wanted 1 or as many", "text_1")
    pairs = list(zip(first * (len(second) // len(first)), second, strict=True))
    if exchange.served.makes == "vectors":
        scores, count = await _cosines(exchange, pairs, truncate=fields.truncate)
    else:
        scores, count = await _scores(exchange, pairs, fields.raw_scores, truncate=fields.truncate, param="text_2")
    return {
        "id": f"score-{uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": exchange.served.name,
        "data": [{"index": index, "object": "score", "score": float(each)} for index, each in enumerate(scores)],
        "usage": {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0},
    }


async def _scores(
    exchange: Exchange, pairs: Sequence[tuple[str, str]], raw: bool, *, truncate: bool, param: str
) -> tuple[NDArray[np.float64], int]:
    """The score of each query and document, and the number of tokens that were read."""
    served = exchange.served
    served.check_makes("scores")
    _check_count(served, pairs, param)
    encoded = await served.encode_pairs(pairs, param, truncate=truncate)
    count = sum(len(ids) for ids, _ in encoded)
    exchange.count_tokens(count)
    rows = await served.pool(encoded)
    try:
        return read_scores(served.model, rows, probabilities=not raw), count
    except InputError as error:
        raise bad_request(str(error).replace(str(served.path), served.name), "model") from None


async def _cosines(
    exchange: Exchange, pairs: Sequence[tuple[str, str]], *, truncate: bool
) -> tuple[NDArray[np.float64], int]:
    """The cosine of the angle between the vectors of each pair, and the number of tokens that were read."""
    served = exchange.served
    _check_count(served, pairs, "text_2")
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    ids = dict(zip(texts, await served.encode_inputs(texts, "text", truncate=truncate), strict=True))
    count = sum(map(len, ids.values()))
    exchange.count_tokens(count)
    rows = await served.pool([(each, [0] * len(each)) for each in ids.values()])
    vectors = dict(zip(texts, normalized(rows.astype(np.float64)), strict=True))
    cosines = np.array([vectors[first] @ vectors[second] for first, second in pairs])
    return cosines, count


def _check_count(served: Served, pairs: Sequence[tuple[str, str]], param: str) -> None:
    most = served.settings.limits.inputs
    if not 0 < len(pairs) <= most:
        raise bad_request(f"{param}: {len(pairs)} texts, wanted 1 to {most}", param)
