"""The server as an ASGI application: its routes, and what stands before them."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from lltool import __version__
from lltool.engine.server import ollama
from lltool.engine.server.anthropic import count_tokens, messages
from lltool.engine.server.embeddings import embeddings, ollama_embed
from lltool.engine.server.errors import ApiError, error_response
from lltool.engine.server.guard import Guard
from lltool.engine.server.log import RequestLog
from lltool.engine.server.metrics import Metrics, metrics, slots
from lltool.engine.server.native import completion, infill
from lltool.engine.server.openai_chat import chat_completions
from lltool.engine.server.openai_completions import completions
from lltool.engine.server.page_files import PageFiles
from lltool.engine.server.registry import Registry
from lltool.engine.server.responses import responses
from lltool.engine.server.settings import ServerSettings
from lltool.engine.server.utilities import (
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
from lltool.gguf.errors import InputError

_log = logging.getLogger("lltool.server")
PAGE = Path(__file__).parent / "page" / "dist"
"""The built web page."""


def make_app(registry: Registry, settings: ServerSettings) -> Starlette:
    """The application. Its registry is closed when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        registry.close()

    page = settings.page
    counts = Metrics(frozenset(route.path for route in _routes() if isinstance(route, Route)))
    middleware = [Middleware(RequestLog, observe=counts.observe)]
    if settings.cors_origins:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"])
        )
    middleware.append(Middleware(Guard, settings=settings, open_files=_open_files(page)))
    app = Starlette(
        routes=[*_routes(), *([Mount("/", PageFiles(directory=page, html=True))] if page else [])],
        middleware=middleware,
        exception_handlers={
            ApiError: _answer_error,
            HTTPException: _answer_http,
            InputError: _answer_fault,
            Exception: _answer_fault,
        },
        lifespan=lifespan,
    )
    app.state.registry, app.state.settings, app.state.version = registry, settings, __version__
    app.state.metrics = counts
    return app


def _routes() -> list[BaseRoute]:
    get, post = ["GET"], ["POST"]
    return [
        *(Route(path, health, methods=get) for path in ("/health", "/v1/health")),
        *(Route(path, models, methods=get) for path in ("/v1/models", "/models")),
        Route("/models/load", load_model, methods=post),
        Route("/models/unload", unload_model, methods=post),
        Route("/v1/models/{name:path}", model, methods=get),
        *(Route(path, chat_completions, methods=post) for path in ("/v1/chat/completions", "/chat/completions")),
        Route("/v1/completions", completions, methods=post),
        Route("/v1/responses", responses, methods=post),
        Route("/v1/messages", messages, methods=post),
        Route("/v1/messages/count_tokens", count_tokens, methods=post),
        *(Route(path, embeddings, methods=post) for path in ("/v1/embeddings", "/embeddings")),
        *(Route(path, completion, methods=post) for path in ("/completion", "/completions")),
        Route("/infill", infill, methods=post),
        Route("/api/chat", ollama.chat, methods=post),
        Route("/api/generate", ollama.generate, methods=post),
        Route("/api/embed", ollama_embed, methods=post),
        Route("/api/show", ollama.show, methods=post),
        Route("/api/tags", ollama.tags, methods=get),
        Route("/api/ps", ollama.running, methods=get),
        Route("/api/version", ollama.version, methods=get),
        Route("/tokenize", tokenize, methods=post),
        Route("/detokenize", detokenize, methods=post),
        Route("/apply-template", apply_template, methods=post),
        Route("/props", props, methods=get),
        Route("/slots", slots, methods=get),
        Route("/metrics", metrics, methods=get),
    ]


def _open_files(page: Path | None) -> Sequence[str]:
    """The paths of the page's files, which a browser asks for before anyone can give it a key."""
    if page is None:
        return []
    return ["/", *("/" + path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file())]


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request.url.path, error)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "there is no such endpoint", 405: "this endpoint wants another method"}
    refused = ApiError(error.status_code, what.get(error.status_code, error.detail))
    response = error_response(request.url.path, refused)
    response.headers.update(error.headers or {})
    return response


async def _answer_fault(request: Request, error: Exception) -> Response:
    if isinstance(error, InputError):
        return error_response(request.url.path, ApiError(500, str(error)))
    _log.error("a fault of the server", exc_info=error)
    return error_response(request.url.path, ApiError(500, "a fault of the server; its log says more"))
