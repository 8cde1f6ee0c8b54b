"""The language of recipes, which assign types to tensors.

A recipe has a `base` type and `rules`; of the rules that match a tensor, the last one counts. An example file:

    version = 1
    extends = "Q4_K_M"        # its base and rules come first; or give a base
    rules = [
      { tensors = "ffn_down", layers = "first 1/4", type = "Q6_K" },
      { match = "shexp", type = "Q8_0" },
      { tensors = "blk.0.attn_v.weight", type = "F16" },
    ]
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import GGMLType

VERSION = 1

CLASSES = (
    "output",  # output.weight, or the token embedding in models that use it as the output matrix
    "token_embd",  # the token embedding in other models
    "attn_v",  # includes the fused attn_qkv and attn_kv_b
    *("attn_k", "attn_q", "attn_output", "ffn_up", "ffn_gate", "ffn_down"),
)
TYPES = {
    type.name: type for type in GGMLType if type.name not in ("Q8_1", "Q8_K", "NVFP4", "I8", "I16", "I32", "I64", "F64")
}
"""The types that a recipe can give to a tensor, by name."""

_LAYERS = re.compile(r"first \d+(/[1-9]\d*)?|more|middle|\d+(-\d+)?(, ?\d+(-\d+)?)*")


@dataclass(frozen=True)
class Rule:
    """Conditions on a tensor, and the type it gets if all that are given hold (None: the recipe's base)."""

    type: GGMLType | None
    tensors: tuple[str, ...] = ()  # CLASSES, or names of tensors
    match: str | None = None  # a regular expression that must be found in the name
    layers: str | None = None  # "first 4", "first 1/8", "more", "middle", or numbers of blocks: "0-3, 7"
    in_order: bool | None = None  # layers count in the order of the class's tensors, even in a model with experts
    stacked: bool | None = None  # the tensor has three dimensions, as those of experts do
    ragged: bool | None = None  # rows are not whole blocks of the base type
    importance: bool | None = None  # whether importance is given
    architectures: tuple[str, ...] = ()
    layer_count: int | None = None  # the model's
    min_gqa: int | None = None  # at least this many query heads share one key-value head
    experts: int | None = None
    min_experts: int | None = None
    instead_of: tuple[GGMLType, ...] = ()  # the type so far is one of these


@dataclass(frozen=True)
class Recipe:
    """A named mix of types. Without a base, every tensor keeps its type."""

    name: str
    base: GGMLType | None
    file_type: FileType | None
    note: str = ""
    aliases: tuple[str, ...] = ()
    needs_importance: tuple[GGMLType, ...] = ()  # besides the types that always need it
    rules: tuple[Rule, ...] = ()


def layers_hold(layers: str, index: int, block: int | None, count: int) -> bool:
    """Whether `layers` includes a tensor, which has index `index` of `count` in its class and lies in block `block`."""
    if layers == "more":  # the first and last eighth of the layers, and every third layer between them
        return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2
    if layers == "middle":
        return count // 8 <= index < 7 * count // 8
    if layers.startswith("first "):
        number, _, part = layers.removeprefix("first ").partition("/")
        return index < (int(number) * count // int(part) if part else int(number))
    spans = [span.split("-") for span in layers.split(",")]
    return block is not None and any(int(span[0]) <= block <= int(span[-1]) for span in spans)


def parse_recipe(
    table: Mapping[str, Any], name: str, known: Mapping[str, Recipe], shared: Mapping[str, Any], where: str
) -> Recipe:
    """The recipe that a TOML table describes.

    It may extend one of the `known` recipes, and its rules may name lists of rules in `shared`. Raises InputError,
    beginning with `where`, for a table that is not a recipe.
    """
    values = _parse_table(table, _RECIPE_KEYS, where)
    parent = None
    if "extends" in values:
        parent = known.get(values["extends"].upper())
        if parent is None:
            raise InputError(f"{where}: extends {values['extends']!r}, which is not one of {', '.join(known)}")
    base = values.get("base", parent.base if parent else None)
    rules = (*(parent.rules if parent else ()), *_parse_rules(table.get("rules", []), shared, where))
    if base is None and (rules or known):  # only the built-in COPY has none
        raise InputError(f"{where}: has no base; give base or extends")
    file_type = parent.file_type if parent and "base" not in values else _file_type_of(base, known)
    return Recipe(
        values.get("name", name),
        base,
        values.get("number", file_type),
        values.get("note", ""),
        values.get("aliases", ()),
        values.get("needs_importance", parent.needs_importance if parent else ()),
        rules,
    )


def format_recipe(recipe: Recipe) -> str:
    """The recipe as TOML that `parse_recipe` reads."""
    table = {
        "version": VERSION,
        "name": recipe.name,
        "note": recipe.note,
        "number": recipe.file_type,
        "base": recipe.base,
        "needs_importance": recipe.needs_importance,
    }
    lines = [f"{key} = {_toml(value)}\n" for key, value in table.items() if value not in (None, "", ())]
    rules = [f"  {_toml_rule(rule)},\n" for rule in recipe.rules]
    return "".join(lines) + (f"rules = [\n{''.join(rules)}]\n" if rules else "")


def _toml_rule(rule: Rule) -> str:
    conditions = {field.name: getattr(rule, field.name) for field in fields(rule) if field.name != "type"}
    given = {name: value for name, value in conditions.items() if value is not None and value != ()}
    type = "base" if rule.type is None else rule.type
    return "{ " + ", ".join(f"{key} = {_toml(value)}" for key, value in {**given, "type": type}.items()) + " }"


def _toml(value: Any) -> str:
    match value:
        case GGMLType():
            return f'"{value.name}"'
        case bool():
            return str(value).lower()
        case int():
            return str(int(value))
        case tuple():
            items = [_toml(item) for item in value]
            return items[0] if len(items) == 1 else f"[{', '.join(items)}]"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'


def _file_type_of(base: GGMLType | None, known: Mapping[str, Recipe]) -> FileType | None:
    """The file type for a recipe with this base: the one of that name, or of the known mix with the fewest rules."""
    mixes = [recipe for recipe in known.values() if recipe.base is not None and recipe.base == base]
    mixes.sort(key=lambda recipe: (recipe.name != recipe.base.name if recipe.base else 0, len(recipe.rules)))
    return mixes[0].file_type if mixes else None


def _parse_rules(rules: Any, shared: Mapping[str, Any], where: str) -> list[Rule]:
    """The parsed rules; names of shared lists are replaced by the rules in them."""
    if not isinstance(rules, list):
        raise InputError(f"{where}: rules is {rules!r}, wanted a list")
    parsed = []
    for index, rule in enumerate(rules, 1):
        here = f"{where}: rule {index}"
        if isinstance(rule, str):
            if rule not in shared:
                raise InputError(f"{here} is {rule!r}, wanted a table or one of {', '.join(shared)}")
            parsed += _parse_rules(shared[rule], shared, f"{here} ({rule})")
        elif not isinstance(rule, dict) or "type" not in rule:
            raise InputError(f'{here} is {rule!r}, wanted one like {{ tensors = "ffn_down", type = "Q6_K" }}')
        else:
            parsed.append(Rule(**_parse_table(rule, _RULE_KEYS, here)))
    return parsed


def _parse_table(table: Mapping[str, Any], keys: Mapping[str, Callable[[Any], Any]], where: str) -> dict[str, Any]:
    values = {}
    for key, value in table.items():
        if key not in keys:
            raise InputError(f"{where}: unknown key {key!r}, wanted one of {', '.join(keys)}")
        try:
            values[key] = keys[key](value)
        except _Wrong as error:
            raise InputError(f"{where}: {key} is {value!r}, wanted {error}") from None
    return values


class _Wrong(Exception):
    """A value is not valid for its key; the message says what the key wants."""


def _version(value: Any) -> int:
    if value != VERSION:
        raise _Wrong(str(VERSION))
    return VERSION


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong("a text")
    return value


def _name(value: Any) -> str:
    if not _text(value) or not value.isprintable() or any(c in value for c in "/\\"):
        raise _Wrong("a name that a file can have")
    return str(value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, value)) if isinstance(value, list) else (_text(value),)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise _Wrong("a whole number")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("true or false")
    return value


def _file_type(value: Any) -> FileType:
    if type(value) is not int or value not in FileType.__members__.values():
        raise _Wrong("the number of a file type")
    return FileType(value)


def _type(value: Any) -> GGMLType:
    if (name := _text(value).upper()) not in TYPES:
        raise _Wrong(f"one of {', '.join(TYPES)}")
    return TYPES[name]


def _types(value: Any) -> tuple[GGMLType, ...]:
    return tuple(map(_type, value)) if isinstance(value, list) else (_type(value),)


def _tensors(value: Any) -> tuple[str, ...]:
    names = _texts(value)
    if not all(name in CLASSES or "." in name for name in names):
        raise _Wrong(f"{', '.join(CLASSES)}, or names of tensors like blk.0.ffn_down.weight")
    return names


def _regex(value: Any) -> str:
    try:
        re.compile(_text(value))
    except re.error as error:
        raise _Wrong(f"a regular expression: {error}") from None
    return str(value)


def _layers(value: Any) -> str:
    if not _LAYERS.fullmatch(_text(value)):
        raise _Wrong('"first 4", "first 1/8", "middle", "more", or numbers like "0-3, 7"')
    return str(value)


_RECIPE_KEYS: dict[str, Callable[[Any], Any]] = {
    "version": _version,
    "name": _name,
    "note": _text,
    "extends": _text,
    "number": _file_type,
    "base": _type,
    "aliases": _texts,
    "needs_importance": _types,
    "rules": lambda rules: rules,
}
_RULE_KEYS: dict[str, Callable[[Any], Any]] = {
    "type": lambda value: None if value == "base" else _type(value),
    "tensors": _tensors,
    "match": _regex,
    "layers": _layers,
    "in_order": _truth,
    "stacked": _truth,
    "ragged": _truth,
    "importance": _truth,
    "architectures": _texts,
    "layer_count": _count,
    "min_gqa": _count,
    "experts": _count,
    "min_experts": _count,
    "instead_of": _types,
}
