"""Vectors of texts: OpenAI's /v1/embeddings, llama-server's /embedding, and Ollama's /api/embed and /api/embeddings."""

import base64
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.embed import normalized
from lltool.engine.server.errors import bad_request
from lltool.engine.server.exchange import Exchange, read_fields
from lltool.engine.server.fields import Fields, TokenIds
from lltool.engine.server.served import Served

Input = Annotated[
    str | TokenIds | list[str] | list[TokenIds], Field(description="texts or token ids, one vector for each")
]
Dimensions = Annotated[
    int, Field(ge=1, le=1 << 31, description="keep so many numbers of each vector, for models trained for it")
]
Truncate = Annotated[bool, Field(description="cut texts that are longer than the context")]


class EmbeddingFields(Fields):
    model: str | None = None
    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions | None = None
    truncate: Truncate = False


class NativeEmbeddingFields(Fields):
    """llama-server's body; with `input` in place of `content`, the answer is OpenAI's."""

    model: str | None = None
    content: Input | None = None
    input: Input | None = None
    embd_normalize: Annotated[int, Field(ge=-1, le=1000, description="the norm that becomes 1; -1: none")] = 2
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions | None = None
    truncate: Truncate = False

    @model_validator(mode="after")
    def has_texts(self) -> "NativeEmbeddingFields":
        if (self.content is None) == (self.input is None):
            raise ValueError("wanted either content or input")
        return self


class OllamaEmbedFields(Fields):
    model: str
    input: str | list[str]
    dimensions: Dimensions | None = None
    truncate: Truncate = False


class OllamaEmbeddingsFields(Fields):
    model: str
    prompt: str


async def embeddings(request: Request) -> Response:
    fields = await read_fields(request, EmbeddingFields)
    with await Exchange.begin(request, fields.model) as exchange:
        return await exchange.answer(_openai(exchange, fields))


async def _openai(exchange: Exchange, fields: EmbeddingFields) -> dict[str, Any]:
    texts = await _encode(exchange, fields.input, "input", truncate=fields.truncate)
    vectors = await _vectors(exchange.served, texts, fields.dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": _shown(vector, fields.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    count = sum(map(len, texts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": exchange.served.name, "usage": usage}


async def native_embedding(request: Request) -> Response:
    fields = await read_fields(request, NativeEmbeddingFields)
    with await Exchange.begin(request, fields.model) as exchange:
        if fields.input is not None:
            body = fields.model_dump(exclude={"content", "embd_normalize"})
            return await exchange.answer(_openai(exchange, EmbeddingFields(**body)))
        return await exchange.answer(_native(exchange, fields))


async def _native(exchange: Exchange, fields: NativeEmbeddingFields) -> list[dict[str, Any]]:
    texts = await _encode(exchange, fields.content, "content", truncate=fields.truncate)
    vectors = await _vectors(exchange.served, texts, fields.dimensions, fields.embd_normalize)
    return [{"index": index, "embedding": [vector.tolist()]} for index, vector in enumerate(vectors)]


async def ollama_embed(request: Request) -> Response:
    fields = await read_fields(request, OllamaEmbedFields)
    with await Exchange.begin(request, fields.model) as exchange:
        return await exchange.answer(_ollama(exchange, fields))


async def _ollama(exchange: Exchange, fields: OllamaEmbedFields) -> dict[str, Any]:
    start = perf_counter()
    texts = await _encode(exchange, fields.input, "input", truncate=fields.truncate)
    vectors = await _vectors(exchange.served, texts, fields.dimensions)
    return {
        "model": fields.model,
        "embeddings": vectors.tolist(),
        "total_duration": round((perf_counter() - start) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": sum(map(len, texts)),
    }


async def ollama_embeddings(request: Request) -> Response:
    fields = await read_fields(request, OllamaEmbeddingsFields)
    with await Exchange.begin(request, fields.model) as exchange:
        return await exchange.answer(_ollama_single(exchange, fields))


async def _ollama_single(exchange: Exchange, fields: OllamaEmbeddingsFields) -> dict[str, Any]:
    texts = await _encode(exchange, fields.prompt, "prompt", truncate=False)
    return {"embedding": (await _vectors(exchange.served, texts))[0].tolist()}


async def _encode(exchange: Exchange, given: Any, param: str, *, truncate: bool) -> list[list[int]]:
    """The token ids of each text. Raises ApiError for a model that makes no vectors, and for texts that do not fit."""
    served = exchange.served
    served.check_makes("vectors")
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    most = served.settings.limits.inputs
    if not 0 < len(given) <= most:
        raise bad_request(f"{param}: {len(given)} texts, wanted 1 to {most}", param)
    if isinstance(given[0], str):
        texts = await served.encode_inputs(given, param, truncate=truncate)
    else:
        for place, ids in enumerate(given):
            if not ids:
                raise bad_request(f"{param}.{place}: an empty text", param)
            served.check_input(ids, param)
        texts = [list(ids) for ids in given]
    exchange.count_tokens(sum(map(len, texts)))
    return texts


async def _vectors(
    served: Served, texts: list[list[int]], dimensions: int | None = None, norm: int = 2
) -> NDArray[np.float32]:
    """The vectors (N, `dimensions`) of texts, divided by their norm of this order (-1: not divided)."""
    width = served.model.config.width
    if dimensions is not None and dimensions > width:
        raise bad_request(f"dimensions: {dimensions}, but the model's vectors have {width} numbers", "dimensions")
    rows = await served.pool([(ids, [0] * len(ids)) for ids in texts])
    vectors = rows[:, :dimensions].astype(np.float64)
    if norm == 2:
        return normalized(vectors).astype(np.float32)
    if norm >= 0:  # llama-server's 0: the largest number becomes 32760, so that all fit 16 bits
        order = norm or np.inf
        lengths = np.linalg.norm(vectors, order, axis=1, keepdims=True) / (1 if norm else 32760)
        vectors /= np.where(lengths > 0, lengths, 1)
    return vectors.astype(np.float32)


def _shown(vector: NDArray[np.float32], format: str) -> list[float] | str:
    if format == "float":
        values: list[float] = vector.tolist()
        return values
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
