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
from lltool.engine.server.endpoints import ENDPOINTS
from lltool.engine.server.errors import ApiError, error_response
from lltool.engine.server.guard import Guard
from lltool.engine.server.json_body import JsonResponse
from lltool.engine.server.log import RequestLog
from lltool.engine.server.metrics import Metrics
from lltool.engine.server.openapi import make_document
from lltool.engine.server.page_files import PageFiles
from lltool.engine.server.registry import Registry
from lltool.engine.server.settings import ServerSettings
from lltool.gguf.errors import InputError

_log = logging.getLogger("lltool.server")
PAGE = Path(__file__).parent / "page" / "dist"
"""The built web page."""


def make_app(registry: Registry, settings: ServerSettings) -> Starlette:
    """The application. Its registry is closed when it shuts down, which closes the trace of its settings too."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        registry.close()

    page = settings.page
    counts = Metrics(frozenset(path for each in ENDPOINTS for path in each.paths))
    middleware = [Middleware(RequestLog, observe=counts.observe, trace=registry.trace)]
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
    async def show_document(request: Request) -> Response:
        return JsonResponse(make_document(__version__))

    return [
        Route("/openapi.json", show_document, methods=["GET"]),
        *(Route(path, each.handler, methods=[each.method]) for each in ENDPOINTS for path in each.paths),
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
