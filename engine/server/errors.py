"""Errors of requests, in the shape that each kind of client reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from lltool.engine.server.json_body import JsonResponse

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
    503: "unavailable_error",
}


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is refused. `param` is the field at fault, `code` a short name that programs compare."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)  # further fields of the error
    retry_after: int | None = None  # seconds

    def __str__(self) -> str:
        return self.message

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The error as the clients of this path read it: those of Anthropic, of Ollama, or else of OpenAI."""
    if path.startswith("/v1/messages"):
        kind = {"server_error": "api_error", "unavailable_error": "overloaded_error"}.get(error.type, error.type)
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    if path.startswith("/api/"):
        return {"error": error.message}
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": {**fields, **error.more}}


def error_response(path: str, error: ApiError) -> Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JsonResponse(error_body(path, error), error.status, headers)
