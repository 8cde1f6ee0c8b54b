"""JSON schemas over all keywords that can be honoured, with instances that each accepts and rejects."""

from collections.abc import Iterator
from typing import Any

WORDS = ["", "a", "abc", "Grüße", "two words", 'quote " and \\', "line\nbreak", "x" * 12]
NUMBERS = [0, 1, -1, 7, 10, 12, 100, -250, 0.5, -3.25]
VALUES = [None, True, False, *WORDS[:4], *NUMBERS[:4], 0.5, [], [1], ["a", "b"], {}, {"a": 1}, {"a": "x", "b": [1, 2]}]

_TEXTS: list[dict[str, Any]] = [
    {},
    {"minLength": 1},
    {"maxLength": 3},
    {"minLength": 2, "maxLength": 5},
    {"pattern": "^[a-z]+$"},
    {"pattern": "b"},
    {"pattern": "^a.*c$", "maxLength": 8},
    {"enum": ["a", "abc", "it's"]},
    {"const": "two words"},
]
_NUMBERS: list[dict[str, Any]] = [
    {},
    {"minimum": 1},
    {"maximum": 10},
    {"minimum": -1, "maximum": 7},
    {"exclusiveMinimum": 0},
    {"exclusiveMaximum": 10},
    {"exclusiveMinimum": -1, "exclusiveMaximum": 12},
    {"multipleOf": 5},
    {"enum": [0, 7, 100]},
]
_FORMATS = {
    "date": ["2024-02-29", "2024-13-01", "x"],
    "time": ["12:30:00Z", "25:00:00Z", "noon"],
    "date-time": ["2024-02-29T12:30:00Z", "2024-02-29", "x"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000", "123e4567", "x"],
    "ipv4": ["127.0.0.1", "256.0.0.1", "x"],
    "email": ["a@example.org", "no at"],
}
_LEAVES: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "integer"},
    {"enum": ["a", 1, None]},
    {"type": ["string", "null"]},
]
_LISTS: list[dict[str, Any]] = [
    {},
    {"minItems": 1},
    {"maxItems": 2},
    {"minItems": 1, "maxItems": 3},
    {"prefixItems": [{"type": "string"}, {"type": "integer"}]},
    {"prefixItems": [{"type": "string"}], "items": {"type": "integer"}, "minItems": 1},
    {"prefixItems": [{"type": "string"}], "items": False},
]


def schemas() -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Each schema with the instances to try; whether it accepts them is for a validator to say."""
    for kind in ("string", "number", "integer", "boolean", "null", "array", "object"):
        yield {"type": kind}, VALUES
        yield {"type": [kind, "null"]}, VALUES
    for keys in _TEXTS:
        yield {"type": "string", **keys}, [*WORDS, 1, None]
        for other in _LEAVES:
            yield {"anyOf": [{"type": "string", **keys}, other]}, [*WORDS, 1, None, True]
    for kind in ("integer", "number"):
        for keys in _NUMBERS:
            yield {"type": kind, **keys}, [*NUMBERS, "1", None]
            yield (
                {"type": "object", "properties": {"n": {"type": kind, **keys}}, "required": ["n"]},
                [{"n": number} for number in NUMBERS],
            )
    for name, texts in _FORMATS.items():
        yield {"type": "string", "format": name}, [*texts, 1]
        yield {"type": "array", "items": {"type": "string", "format": name}}, [[], [texts[0]], texts]
    for texts in _TEXTS:
        for keys in _LISTS:
            listed = {"type": "array", "items": {"type": "string", **texts}} | keys
            yield listed, [[], [1], WORDS, WORDS[:2], ["abc"], ["abc", "a", "abc"]]
            yield {"type": "object", "properties": {"x": listed}, "additionalProperties": False}, [
                {}, {"x": []}, {"x": ["abc"]}, {"x": ["abc", "a"]}, {"x": "abc"}, {"y": []}
            ]  # fmt: skip
        for numbers in _NUMBERS:
            kinds = {"t": {"type": "string", **texts}, "n": {"type": "number", **numbers}}
            yield (
                {"type": "object", "properties": kinds, "required": ["t", "n"]},
                [{"t": text, "n": number} for text, number in zip(WORDS, NUMBERS, strict=False)],
            )
    for numbers in _NUMBERS:
        for keys in _LISTS[:4]:
            yield (
                {"type": "array", "items": {"type": "integer", **numbers}, **keys},
                [[], [1], [5, 10], [0, 7, 100], NUMBERS],
            )
            yield {"type": "object", "additionalProperties": {"type": "integer", **numbers}}, [
                {}, {"a": 1}, {"a": 5, "b": 10}, {"a": 0.5}, {"a": "x"}, {"a": 100}
            ]  # fmt: skip
    for leaf in _LEAVES:
        for keys in _LISTS:
            yield (
                {"type": "array", "items": leaf, **keys},
                [[], ["a"], [1], ["a", 1], ["a", 1, 2], ["a", "b", "c", "d"], "a"],
            )
        yield from _objects(leaf)
        yield from _combined(leaf)
    yield from _referring()


def _objects(leaf: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    tried: list[Any] = [
        {}, {"a": "x"}, {"a": 1}, {"a": None}, {"b": 1}, {"a": "x", "b": 1}, {"a": 1, "b": 1}, {"a": "x", "c": 2},
        {"a": "x", "b": 1, "c": "y"}, [], "a",
    ]  # fmt: skip
    for required in ([], ["a"], ["b"], ["a", "b"]):
        for more in (True, False, leaf):
            yield (
                {
                    "type": "object",
                    "properties": {"a": leaf, "b": {"type": "integer"}},
                    "required": required,
                    "additionalProperties": more,
                },
                tried,
            )
    yield {"type": "object", "additionalProperties": leaf}, tried
    yield {"type": "object", "additionalProperties": leaf, "minProperties": 1}, tried
    yield {"type": "object", "additionalProperties": leaf, "maxProperties": 1}, tried
    yield {"type": "object", "patternProperties": {"^a": leaf}, "additionalProperties": False}, tried
    yield {"type": "object", "patternProperties": {"^a": leaf, "^b": {"type": "integer"}}}, tried


def _combined(leaf: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    inner = {"type": "object", "properties": {"a": leaf}, "required": ["a"]}
    tried: list[Any] = [{}, {"a": "x"}, {"a": 1}, {"a": True}, {"a": "x", "b": 1}, {"a": 1, "b": "y"}, 1, "x", None]
    yield {"anyOf": [inner, {"type": "integer"}]}, tried
    yield {"oneOf": [inner, {"type": "integer"}]}, tried
    yield {"allOf": [inner, {"type": "object", "properties": {"b": {"type": "integer"}}}]}, tried
    yield {"allOf": [inner, {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}]}, tried
    yield (
        {**inner, "anyOf": [{"properties": {"b": {"type": "integer"}}}, {"properties": {"b": {"type": "string"}}}]},
        tried,
    )
    yield {"type": "array", "items": inner, "maxItems": 2}, [[], [{"a": "x"}], [{"a": 1}, {"a": None}], [{}], [1]]
    deep = {"deep": inner, "list": {"type": "array", "items": leaf}}
    yield {"type": "object", "properties": deep, "required": ["deep"]}, [
        {"deep": {"a": "x"}}, {"deep": {"a": 1}, "list": [1]}, {"deep": {}}, {"list": []},
        {"deep": {"a": "x"}, "list": ["x", 1]},
    ]  # fmt: skip


def _referring() -> Iterator[tuple[dict[str, Any], list[Any]]]:
    leaf = {"value": 1}
    trees = [
        leaf, {"value": 1, "children": []}, {"value": 1, "children": [leaf, {"value": 2, "children": [leaf]}]},
        {"children": []}, {"value": "x"}, {"value": 1, "x": 2},
    ]  # fmt: skip
    yield _tree("#"), trees
    yield {"$ref": "#/$defs/t", "$defs": {"t": _tree("#/$defs/t")}}, trees
    for place in ("$defs", "definitions"):
        count = {"type": "integer", "minimum": 0}
        yield {place: {"n": count}, "type": "array", "items": {"$ref": f"#/{place}/n"}}, [[], [0, 5], [-1], ["x"]]


def _tree(name: str) -> dict[str, Any]:
    children = {"type": "array", "items": {"$ref": name}}
    return {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "children": children},
        "required": ["value"],
        "additionalProperties": False,
    }


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "not": {"not": {"type": "string"}},
    "if": {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "contains": {"type": "array", "contains": {"type": "integer"}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "nonsense-format": {"type": "string", "format": "nonsense-format"},
    "look-around": {"type": "string", "pattern": "(?=a)b"},
    "http://example.org": {"$ref": "http://example.org/schema.json"},
}
"""Schemas that cannot be honoured, each by what the error must name."""
