"""What stands before every endpoint: who may ask. Pure ASGI, so that streams pass through unbuffered."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lltool.engine.server.errors import ApiError, error_response
from lltool.engine.server.settings import ServerSettings

OPEN_PATHS = ("/health", "/v1/health")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Refuses requests with a foreign Host or Origin header, or without a key where keys are wanted.

    The Host header is checked on loopback: a page on the internet can make its own name mean 127.0.0.1 (DNS
    rebinding), but not change the name that the browser sends. A foreign Origin is refused even for requests whose
    answers the browser would hide from the page, because they would still be computed.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, open_files: Sequence[str] = ()) -> None:
        self.app = app
        self.settings = settings
        self._open = {*OPEN_PATHS, *open_files}
        self._keys = [_digest(key) for key in settings.api_keys]
        self._hosts = {*_LOOPBACK, settings.host.lower(), *(host.lower() for host in settings.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        error = self._check_host(headers) or self._check_origin(headers) or self._check_key(scope, headers)
        if error is None:
            return await self.app(scope, receive, send)
        return await error_response(scope["path"], error)(scope, receive, send)

    def _check_host(self, headers: Headers) -> ApiError | None:
        if not self.settings.is_loopback and not self.settings.allowed_hosts:
            return None
        if host_name(headers.get("host", "")) in self._hosts:
            return None
        return ApiError(
            403, "the Host header names another host; start the server with --allowed-hosts to allow it", code="host"
        )

    def _check_origin(self, headers: Headers) -> ApiError | None:
        origin = headers.get("origin")
        if origin is None or origin in self.settings.cors_origins or "*" in self.settings.cors_origins:
            return None
        if _netloc(origin) == headers.get("host", "").lower():
            return None
        return ApiError(
            403, "a page of another origin may not use this server; see its option --cors-origins", code="origin"
        )

    def _check_key(self, scope: Scope, headers: Headers) -> ApiError | None:
        if not self._keys or (scope["method"] in ("GET", "HEAD") and scope["path"] in self._open):
            return None
        found = _digest(_given_key(headers))
        if sum(hmac.compare_digest(found, key) for key in self._keys):  # a sum, so that every key is compared
            return None
        return ApiError(401, "a valid API key is wanted, as in Authorization: Bearer KEY", code="invalid_api_key")


def _given_key(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def host_name(header: str) -> str:
    """The name in a Host header, without its port, in lower case; "" if it is none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
