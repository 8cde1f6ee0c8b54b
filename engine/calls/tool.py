"""Tools that a model may call, and its calls of them."""

import json
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. `parameters` is the JSON schema of the object of its arguments.

    With `is_strict`, a schema that cannot be enforced in full is an error; else what cannot be enforced is left out.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    is_strict: bool = False

    @property
    def properties(self) -> Mapping[str, Any]:
        found = self.parameters.get("properties")
        return found if isinstance(found, Mapping) else {}

    def as_json(self) -> dict[str, Any]:
        """As OpenAI writes it, which is what chat templates expect."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass
class Call:
    """A call of a tool. `arguments` is JSON, as far as it was generated."""

    id: str
    name: str
    arguments: str = ""

    @property
    def parsed(self) -> Any:
        """The arguments as a dict; of a call that was cut off, the text that there is."""
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError):
            return self.arguments

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class CallDelta:
    """What is new of call number `index`; its first one has its id and name."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


def make_id() -> str:
    """An id of nine letters and digits: the templates of Mistral accept no others."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def schema_types(schema: Any, root: Mapping[str, Any] | None = None, depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it says so; empty if it does not. `root` is what `$ref` is in."""
    if not isinstance(schema, Mapping) or depth > 8:
        return frozenset()
    root = schema if root is None else root
    if isinstance(reference := schema.get("$ref"), str):
        return schema_types(_find(reference, root), root, depth + 1)
    declared = schema.get("type")
    if isinstance(declared, str):
        found = {declared}
    elif isinstance(declared, list):
        found = {each for each in declared if isinstance(each, str)}
    else:
        values = (
            schema.get("enum")
            if isinstance(schema.get("enum"), list)
            else [schema["const"]]
            if "const" in schema
            else []
        )
        found = {json_type(value) for value in values or []}
        for name in ("anyOf", "oneOf"):
            choices = schema.get(name)
            for choice in choices if isinstance(choices, list) else []:
                found |= schema_types(choice, root, depth + 1)
    if schema.get("nullable") is True:  # how transformers marks an Optional
        found.add("null")
    return frozenset(found)


def json_type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def resolve(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema without the `$ref` that it may be."""
    for _ in range(8):
        if not isinstance(schema, Mapping):
            return {}
        if not isinstance(reference := schema.get("$ref"), str):
            return schema
        schema = _find(reference, root)
    return {}


def _find(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    if not reference.startswith("#"):
        return None
    for part in reference[1:].split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
