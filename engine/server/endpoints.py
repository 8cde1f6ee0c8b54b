"""All endpoints: the application's routes and the OpenAPI document are both made from this table."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.server import ollama
from lltool.engine.server.adapters import AdapterScales, list_adapters, set_adapters
from lltool.engine.server.anthropic import CountFields, MessagesFields, count_tokens, messages
from lltool.engine.server.embeddings import (
    EmbeddingFields,
    NativeEmbeddingFields,
    OllamaEmbeddingsFields,
    OllamaEmbedFields,
    embeddings,
    native_embedding,
    ollama_embed,
    ollama_embeddings,
)
from lltool.engine.server.metrics import metrics, slots
from lltool.engine.server.native import InfillFields, NativeCompletionFields, completion, infill
from lltool.engine.server.openai_chat import ChatFields, chat_completions
from lltool.engine.server.openai_completions import CompletionFields, completions
from lltool.engine.server.rerank import RerankFields, ScoreFields, rerank, score
from lltool.engine.server.responses import ResponsesFields, responses
from lltool.engine.server.slots import SlotFields, change_slot
from lltool.engine.server.utilities import (
    ApplyTemplateFields,
    DetokenizeFields,
    ModelFields,
    TokenizeFields,
    apply_template,
    detokenize,
    health,
    load_model,
    model,
    models,
    props,
    tokenize,
    unload_model,
)

Handler = Callable[[Request], Awaitable[Response]]
SSE = "text/event-stream"


@dataclass(frozen=True)
class Endpoint:
    """A handler with its paths, of which the first is its own; `fields` is the body of a POST.

    `stream` is the type of an answer that is sent as it is generated, `media` that of a whole one.
    """

    handler: Handler
    paths: tuple[str, ...]
    summary: str
    fields: type[BaseModel] | None = None
    stream: str | None = None
    media: str = "application/json"
    answer: Literal["object", "array"] = "object"
    refusals: tuple[int, ...] = ()  # statuses of errors that not all endpoints have

    @property
    def method(self) -> Literal["GET", "POST"]:
        return "GET" if self.fields is None else "POST"


_BUSY = (404, 503)  # of an endpoint that names a model

ENDPOINTS = (
    Endpoint(health, ("/health", "/v1/health"), "Whether the server answers; needs no key"),
    Endpoint(models, ("/v1/models", "/models"), "The models that there are"),
    Endpoint(model, ("/v1/models/{name:path}",), "One model", refusals=(404,)),
    Endpoint(load_model, ("/models/load",), "Load a model", ModelFields, refusals=_BUSY),
    Endpoint(unload_model, ("/models/unload",), "Unload a model when its requests are answered", ModelFields,
        refusals=(404,)),
    Endpoint(chat_completions, ("/v1/chat/completions", "/chat/completions"), "Answer a conversation (OpenAI)",
        ChatFields, SSE, refusals=_BUSY),
    Endpoint(completions, ("/v1/completions",), "Continue texts (OpenAI)", CompletionFields, SSE, refusals=_BUSY),
    Endpoint(responses, ("/v1/responses",), "Answer a conversation (OpenAI's responses)", ResponsesFields, SSE,
        refusals=_BUSY),
    Endpoint(messages, ("/v1/messages",), "Answer a conversation (Anthropic)", MessagesFields, SSE, refusals=_BUSY),
    Endpoint(count_tokens, ("/v1/messages/count_tokens",), "Count the tokens of a conversation (Anthropic)",
        CountFields, refusals=_BUSY),
    Endpoint(embeddings, ("/v1/embeddings",), "Vectors of texts (OpenAI)", EmbeddingFields, refusals=_BUSY),
    Endpoint(native_embedding, ("/embedding", "/embeddings"),
        "Vectors of texts: of `content` llama-server's list of several, of `input` OpenAI's object",
        NativeEmbeddingFields, refusals=_BUSY),
    Endpoint(rerank, ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking", "/v2/rerank"),
        "Sort documents by their relevance (Jina, Cohere); of `texts`, a list of several (TEI)", RerankFields,
        refusals=_BUSY),
    Endpoint(score, ("/v1/score", "/score"), "Scores of pairs of texts (vLLM)", ScoreFields, refusals=_BUSY),
    Endpoint(completion, ("/completion", "/completions"), "Continue texts (llama-server); of several, a list",
        NativeCompletionFields, SSE, refusals=_BUSY),
    Endpoint(infill, ("/infill",), "Fill a gap in a text (llama-server)", InfillFields, SSE, refusals=(*_BUSY, 501)),
    Endpoint(list_adapters, ("/lora-adapters",), "The adapters with their scales", answer="array", refusals=_BUSY),
    Endpoint(set_adapters, ("/lora-adapters",), "Set the scales of adapters for requests that state none",
        AdapterScales, refusals=_BUSY),
    Endpoint(tokenize, ("/tokenize",), "The tokens of a text", TokenizeFields, refusals=_BUSY),
    Endpoint(detokenize, ("/detokenize",), "The text of tokens", DetokenizeFields, refusals=_BUSY),
    Endpoint(apply_template, ("/apply-template",), "A conversation as the model sees it", ApplyTemplateFields,
        refusals=_BUSY),
    Endpoint(props, ("/props",), "Settings and template of a model, which the query's `model` names", refusals=_BUSY),
    Endpoint(slots, ("/slots",), "What runs and waits", answer="array"),
    Endpoint(change_slot, ("/slots/{id}",), "Save a slot's text with its state in a file, restore or erase it",
        SlotFields, refusals=(*_BUSY, 501)),
    Endpoint(metrics, ("/metrics",), "Counts for Prometheus", media="text/plain"),
    Endpoint(ollama.chat, ("/api/chat",), "Answer a conversation (Ollama)", ollama.OllamaChatFields, ollama.LINES,
        refusals=_BUSY),
    Endpoint(ollama.generate, ("/api/generate",), "Answer or continue a text (Ollama)", ollama.OllamaGenerateFields,
        ollama.LINES, refusals=_BUSY),
    Endpoint(ollama_embed, ("/api/embed",), "Vectors of texts (Ollama)", OllamaEmbedFields, refusals=_BUSY),
    Endpoint(ollama_embeddings, ("/api/embeddings",), "The vector of a text (Ollama)", OllamaEmbeddingsFields,
        refusals=_BUSY),
    Endpoint(ollama.show, ("/api/show",), "What a model's file says (Ollama)", ollama.ShowFields, refusals=(404,)),
    Endpoint(ollama.tags, ("/api/tags",), "The models that there are (Ollama)"),
    Endpoint(ollama.running, ("/api/ps",), "The models that are loaded (Ollama)"),
    Endpoint(ollama.version, ("/api/version",), "The version of the server (Ollama)"),
)  # fmt: skip
