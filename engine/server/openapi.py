"""GET /openapi.json: the OpenAPI document, made from the table of endpoints and the models that check their bodies."""

from typing import Any

from pydantic.json_schema import models_json_schema

from lltool.engine.server.endpoints import ENDPOINTS, Endpoint
from lltool.engine.server.slots import ACTIONS

_TEXTS = {"type": "string"}
_ALWAYS = {
    401: "No valid key, where the server wants one",
    403: "A foreign Host or Origin header",
    500: "A fault of the server, or a model that cannot be used",
}
_OF_BODIES = {400: "A field or the prompt is wrong; the error says which", 413: "The body is too large"}
_OTHERS = {
    404: "No such model or file",
    501: "The model cannot do this",
    503: "Too much is asked for at the moment; Retry-After says when to try again",
}


def make_document(version: str) -> dict[str, Any]:
    """The document, as OpenAPI 3.1 has it."""
    bodies = list(dict.fromkeys(each.fields for each in ENDPOINTS if each.fields is not None))
    names, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        for path in endpoint.paths:
            body = None if endpoint.fields is None else names[endpoint.fields, "validation"]
            shown = path.replace("{name:path}", "{name}")
            paths[shown] = {endpoint.method.lower(): _operation(endpoint, path, body)}
    error = {"type": "object", "description": "OpenAI's error; of Anthropic's and Ollama's endpoints, theirs"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "lltool serve", "version": version, "description": "A server of local language models"},
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Error": error},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def _operation(endpoint: Endpoint, path: str, body: Any) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": f"{endpoint.method.lower()} {path}",
        "responses": _responses(endpoint),
    }
    if "{name" in path:
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": _TEXTS}]
    if "{id}" in path:
        operation["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}},
            {"name": "action", "in": "query", "required": True, "schema": {"enum": list(ACTIONS)}},
        ]
    if path == "/props":
        operation["parameters"] = [{"name": "model", "in": "query", "required": False, "schema": _TEXTS}]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    kind: dict[str, Any] = {"type": endpoint.answer}
    if endpoint.fields is not None and "several" in endpoint.summary:
        kind = {"type": ["object", "array"]}
    content: dict[str, Any] = {endpoint.media: {"schema": _TEXTS if endpoint.media == "text/plain" else kind}}
    if endpoint.stream is not None:
        content[endpoint.stream] = {"schema": _TEXTS}
    refusals = _ALWAYS | (_OF_BODIES if endpoint.fields else {}) | {code: _OTHERS[code] for code in endpoint.refusals}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "200": {"description": "The answer", "content": content},
        **{str(code): {"description": what, "content": error} for code, what in sorted(refusals.items())},
    }
