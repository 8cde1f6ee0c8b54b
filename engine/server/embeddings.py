"""POST /v1/embeddings, as OpenAI has it, and Ollama's /api/embed."""

import base64
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.server.errors import ApiError, bad_request
from lltool.engine.server.exchange import Exchange, read_fields
from lltool.engine.server.fields import Fields, TokenIds
from lltool.engine.server.served import Served
from lltool.gguf.errors import InputError

Input = Annotated[
    str | TokenIds | list[str] | list[TokenIds], Field(description="texts or token ids, one vector for each")
]


class EmbeddingFields(Fields):
    model: str | None = None
    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None


class OllamaEmbedFields(Fields):
    model: str
    input: str | list[str]
    dimensions: Annotated[int, Field(ge=1)] | None = None


async def embeddings(request: Request) -> Response:
    fields = await read_fields(request, EmbeddingFields)
    with await Exchange.begin(request, fields.model) as exchange:
        return await exchange.answer(_openai(exchange.served, fields))


async def _openai(served: Served, fields: EmbeddingFields) -> dict[str, Any]:
    texts = await _encode(served, fields.input)
    vectors = await _vectors(served, texts, fields.dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": _shown(vector, fields.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    count = sum(map(len, texts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": served.name, "usage": usage}


async def ollama_embed(request: Request) -> Response:
    fields = await read_fields(request, OllamaEmbedFields)
    with await Exchange.begin(request, fields.model) as exchange:
        return await exchange.answer(_ollama(exchange.served, fields))


async def _ollama(served: Served, fields: OllamaEmbedFields) -> dict[str, Any]:
    texts = await _encode(served, fields.input)
    vectors = await _vectors(served, texts, fields.dimensions)
    return {"model": fields.model, "embeddings": vectors.tolist(), "prompt_eval_count": sum(map(len, texts))}


async def _encode(served: Served, given: Any) -> list[list[int]]:
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    most = served.settings.limits.inputs
    if not 0 < len(given) <= most:
        raise bad_request(f"input: {len(given)} texts, wanted 1 to {most}", "input")
    texts = [await served.encode_text(each) if isinstance(each, str) else list(each) for each in given]
    for place, ids in enumerate(texts):
        if not ids:
            raise bad_request(f"input.{place}: an empty text", "input")
        served.check_prompt(ids, param="input")
    return texts


async def _vectors(served: Served, texts: list[list[int]], dimensions: int | None) -> NDArray[np.float32]:
    width = served.model.config.width
    if dimensions not in (None, width):
        raise bad_request(f"dimensions: {dimensions}, but the model has {width}", "dimensions")
    try:
        return await served.embedder.embed(texts)
    except InputError as error:  # the texts were checked: the model is one that cannot make vectors
        raise ApiError(501, str(error)) from None


def _shown(vector: NDArray[np.float32], format: str) -> list[float] | str:
    if format == "float":
        values: list[float] = vector.tolist()
        return values
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
