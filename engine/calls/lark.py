"""The grammar of calls in a model's format, in llguidance's Lark: the same patterns that the parser reads."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lltool.engine.calls.answer_format import AnswerFormat, Dialect, Slot, TaggedArguments, parts
from lltool.engine.calls.tool import Tool, resolve, schema_types
from lltool.engine.calls.writing import write_value
from lltool.gguf.errors import InputError

# What the template's own JSON looks like; without it, a model could fill its answer with white space.
_JSON_FORM = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_ANYTHING = "/(?s:.*)/"
_DEEPEST = 12
# What a text that is not written as JSON cannot be held to, nor a list.
_OF_TEXTS = ("pattern", "format", "minLength", "maxLength")
_OF_LISTS = ("uniqueItems", "prefixItems", "contains")
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


class CallGrammar:
    """Writes grammars. `control_ids` are the ids of control tokens by their texts, `ends` those that end an answer."""

    def __init__(
        self,
        format: AnswerFormat,
        tools: Sequence[Tool],
        *,
        control_ids: Mapping[str, int],
        ends: Iterable[int] = (),
        is_parallel: bool = True,
    ) -> None:
        self.format, self.tools = format, tools
        self.is_parallel = is_parallel and not format.is_single
        self._ids, self._ends = control_ids, frozenset(ends)
        self._rules: dict[str, str] = {}

    def required(self, *, may_reason: bool, after_reasoning: bool = False, answer: str | None = None) -> str:
        """A grammar of an answer that is one call or more, or JSON by the schema `answer`.

        With `may_reason`, it may reason before; with `after_reasoning`, white space may come before.
        """
        start = self._calls(self.format.calls[:1], trim=True)
        if answer is not None:
            self._rules["answer"] = f"%json {answer}"
            start = f"({start} | answer)"
        reasoning = self.format.reasoning
        if may_reason and reasoning and reasoning.open:
            tail = self._until(reasoning.close)
            after = self._literal(self.format.resume) if self.format.resume else "/[ \\n]{0,3}/"
            self._rules["reasoning"] = f"{self._literal(reasoning.open)} {tail} {after}"
            start = f"reasoning? {start}"
        elif after_reasoning:
            start = f"/[ \\n]{{0,3}}/ {start}"
        return self._text(start)

    def triggered(self) -> str:
        """A grammar of what begins with the trigger of a call."""
        calls, trigger = self.format.calls, self.format.trigger
        if trigger and not self.format.section.open:
            calls = tuple(dict.fromkeys(trigger + call.partition(trigger)[2] for call in calls))
        return self._text(self._calls(calls, trim=not trigger, starts_at=trigger))

    def _text(self, start: str) -> str:
        lines = [f"{name}: {body}" for name, body in self._rules.items()]
        return "%llguidance {}\n" + "\n".join([f"start: {start}", *lines]) + "\n"

    def _rule(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name

    def _calls(self, calls: Sequence[str], *, trim: bool, starts_at: str = "") -> str:
        section = self.format.section
        opening = section.open.lstrip("\n")
        if opening and starts_at:
            opening = starts_at + opening.partition(starts_at)[2]
        options = []
        for variant, call in enumerate(calls):
            first, rest = (self._one_of(call, variant, trim=trim and not section.open), self._one_of(call, variant))
            more = f" ({self._literal(self.format.separator)} {rest})*" if self.is_parallel else ""
            closing = self._literal(section.close, is_last=True)
            options.append(f"{self._literal(opening)} {first}{more} {closing}".strip())
        return "(" + " | ".join(options) + ")" if len(options) > 1 else options[0]

    def _one_of(self, call: str, variant: int, *, trim: bool = False) -> str:
        """A rule for a call of any tool; with `trim`, without line ends before it."""
        pattern = call.lstrip("\n") if trim else call
        is_same = pattern == call
        names = []
        for number, tool in enumerate(self.tools):
            suffix = f"{variant}_{number}{'' if is_same else '_t'}"
            if f"call_{suffix}" not in self._rules:
                body = " ".join(self._parts(pattern, tool, number))
                self._rule(f"call_{suffix}", body)
            names.append(f"call_{suffix}")
        return self._rule(f"calls_{variant}{'' if is_same else '_t'}", " | ".join(names))

    def _parts(self, pattern: str, tool: Tool, number: int) -> Iterable[str]:
        # The name and what surrounds it are one text, which its tokens may cut anywhere.
        pieces = parts(pattern.replace("$name", tool.name))
        for place, part in enumerate(pieces):
            if isinstance(part, str):
                yield self._literal(part, is_last=place == len(pieces) - 1 and not self.format.section.close)
            elif part.name == "arguments":
                yield self._arguments(tool, number)
            else:
                yield "/[0-9]{1,3}/" if part.name == "index" else "/[A-Za-z0-9]{9}/"

    def _literal(self, text: str, *, is_last: bool = False) -> str:
        """A text in which control tokens are themselves. A token that ends the answer can only be at the end of it."""
        found = []
        for token, plain in self._cut(text):
            if token is None:
                found.append(_quoted(plain))
            elif token not in self._ends:
                found.append(f"<[{token}]>")
            elif not is_last:
                raise InputError(f"calls of tools: {plain} ends this model's answers, so that nothing can follow it")
            else:
                break
        return " ".join(found)

    def _cut(self, text: str) -> list[tuple[int | None, str]]:
        """The parts of a text: control tokens with their ids, and the texts between them."""
        names = sorted((name for name in self._ids if name in text), key=len, reverse=True)
        if not names:
            return [(None, text)] if text else []
        pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
        return [(self._ids.get(piece), piece) for piece in pieces if piece]

    def _until(self, close: str) -> str:
        """Any text up to and including `close`."""
        pieces = self._cut(close)
        if pieces and pieces[0][0] is not None:
            return f"{_ANYTHING} {self._literal(close, is_last=True)}"
        first, rest = pieces[0][1], "".join(text for _, text in pieces[1:])
        name = f"until_{len(self._rules)}"
        self._rules[f"{name}[suffix={_quoted(first)}]"] = _ANYTHING
        return f"{name} {self._literal(rest, is_last=True)}".strip()

    def _arguments(self, tool: Tool, number: int) -> str:
        name = f"arguments_{number}"
        if name in self._rules:
            return name
        match self.format.arguments:
            case TaggedArguments() as style:
                body = self._tagged(style, tool)
            case Dialect() as style:
                body = self._items(style, tool, tool.parameters, name, 0)
            case _:
                body = _json(tool.parameters, tool)
        return self._rule(name, body)

    def _tagged(self, style: TaggedArguments, tool: Tool) -> str:
        required = tool.parameters.get("required")
        needed = set(required) if isinstance(required, list) else set()
        found = []
        for place, (key, schema) in enumerate(tool.properties.items()):
            types = schema_types(schema, tool.parameters)
            kind = next(iter(types)) if len(types) == 1 else "string" if not types else sorted(types)[0]
            slots = {
                "key": key,
                "type": "number" if kind == "integer" else kind,
                "is_string": "true" if types in (frozenset(["string"]), frozenset()) else "false",
            }
            opening = "".join(slots[part.name] if isinstance(part, Slot) else part for part in parts(style.open))
            body = f"{self._literal(opening)} {self._tagged_value(style, tool, schema, types)}"
            rule = self._rule(f"argument_{self.tools.index(tool)}_{place}", body)
            found.append(rule if key in needed else f"{rule}?")
        return " ".join(found) or '""'

    def _tagged_value(self, style: TaggedArguments, tool: Tool, schema: Any, types: frozenset[str]) -> str:
        schema = resolve(schema, tool.parameters)
        close = self._literal(style.close)
        choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(choices, list) and choices:
            texts = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in choices]
            return "(" + " | ".join(map(_quoted, texts)) + f") {close}"
        if types and "string" not in types:
            return f"{self._nested(schema, tool)} {close}"
        _check_strict(tool, schema, _OF_TEXTS, "a text")
        return self._until(style.close)

    def _nested(self, schema: Mapping[str, Any], tool: Tool) -> str:
        shared = {name: tool.parameters[name] for name in ("$defs", "definitions") if name in tool.parameters}
        return _json({**shared, **schema}, tool)

    def _items(self, style: Dialect, tool: Tool, schema: Mapping[str, Any], name: str, depth: int) -> str:
        """The items of an object in a dialect, the optional ones with their commas."""
        properties = schema.get("properties")
        known = dict(properties) if isinstance(properties, Mapping) else {}
        if not known:
            return '""'
        required = schema.get("required")
        needed = set(required) if isinstance(required, list) else set()
        order = sorted(known) if style.is_sorted else list(known)
        comma = _quoted(style.separator)
        head = tail = '""'
        for place, key in reversed(list(enumerate(order))):
            written = key if depth == 0 or style.has_bare_keys else write_value(style, key)
            colon = style.colon if depth == 0 else ":"
            value = self._value(style, tool, known[key], f"{name}_{place}", depth + 1)
            item = self._rule(f"{name}_item_{place}", f"{self._literal(written + colon)} {value}")
            is_needed = key in needed
            after = self._rule(f"{name}_after_{place}", tail)
            before = self._rule(f"{name}_before_{place}", head)
            head = f"{item} {after}" + ("" if is_needed else f" | {before}")
            tail = f"{comma} {item} {after}" + ("" if is_needed else f" | {after}")
        return head

    def _value(self, style: Dialect, tool: Tool, schema: Any, name: str, depth: int) -> str:
        schema = resolve(schema, tool.parameters)
        if depth > _DEEPEST:
            raise InputError(f"tool {tool.name}: its parameters are nested too deeply for this model's format of calls")
        choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(choices, list) and choices:
            return self._rule(name, " | ".join(self._literal(write_value(style, each)) for each in choices))
        types = sorted(schema_types(schema, tool.parameters))
        if not types:
            return self._anything(style)
        options = []
        for kind in types:
            writer = _WRITERS.get(kind)
            if writer is None:
                raise InputError(f"tool {tool.name}: type {kind!r}, wanted one of {', '.join(_WRITERS)}")
            options.append(writer(self, style, tool, schema, f"{name}_{kind}", depth))
        return self._rule(name, " | ".join(options))

    def _anything(self, style: Dialect) -> str:
        """A rule for any value of a dialect."""
        if "anything" not in self._rules:
            empty: Mapping[str, Any] = {}
            text = self._string(style, Tool("any"), empty, "anything", 0)
            comma, words = _quoted(style.separator), _words(True, False, None)(self, style)
            key = r"/[A-Za-z_][A-Za-z0-9_]*/" if style.has_bare_keys else text
            item = f'{key} ":" anything'
            lists = f'"[" (anything ({comma} anything)*)? "]" | "{{" ({item} ({comma} {item})*)? "}}"'
            self._rules["anything"] = f"{text} | {_json({'type': 'number'}, Tool('any'))} | {words} | {lists}"
        return "anything"

    def _string(self, style: Dialect, tool: Tool, schema: Mapping[str, Any], name: str, depth: int) -> str:
        _check_strict(tool, schema, _OF_TEXTS, "a text")
        quote = style.quotes[0]
        if not style.has_escapes:
            return f"{self._literal(quote)} {self._until(quote)}"
        return f"/{quote}([^{quote}\\\\\\n]|\\\\[{quote}\\\\nrt])*{quote}/"

    def _array(self, style: Dialect, tool: Tool, schema: Mapping[str, Any], name: str, depth: int) -> str:
        _check_strict(tool, schema, _OF_LISTS, "a list")
        item = self._value(style, tool, schema.get("items", {}), f"{name}_item", depth + 1)
        least, most = schema.get("minItems", 0), schema.get("maxItems", "")
        if most == 0:
            return '"[]"'
        more = f"({_quoted(style.separator)} {item}){{{max(least - 1, 0)},{most and most - 1}}}"
        some = f"{item} {more}"
        return f'"[" {some if least else f"({some})?"} "]"'

    def _number(self, style: Dialect, tool: Tool, schema: Mapping[str, Any], name: str, depth: int) -> str:
        kind = "integer" if name.endswith("_integer") else "number"
        return _json({**{each: schema[each] for each in _OF_NUMBERS if each in schema}, "type": kind}, tool)

    def _object(self, style: Dialect, tool: Tool, schema: Mapping[str, Any], name: str, depth: int) -> str:
        return f'"{{" {self._rule(f"{name}_items", self._items(style, tool, schema, name, depth))} "}}"'


def _words(*values: Any) -> Callable[..., str]:
    def write(self: CallGrammar, style: Dialect, *_: Any) -> str:
        return "(" + " | ".join(_quoted(write_value(style, value)) for value in values) + ")"

    return write


_WRITERS: dict[str, Callable[..., str]] = {
    "string": CallGrammar._string,
    "integer": CallGrammar._number,
    "number": CallGrammar._number,
    "boolean": _words(True, False),
    "null": _words(None),
    "array": CallGrammar._array,
    "object": CallGrammar._object,
}


def _check_strict(tool: Tool, schema: Mapping[str, Any], keywords: Sequence[str], what: str) -> None:
    if tool.is_strict and (unheld := [each for each in keywords if each in schema]):
        raise InputError(
            f"tool {tool.name}: {unheld[0]!r} of {what} cannot be enforced in this model's format of calls; "
            "leave it out or do not ask for strict"
        )


def _json(schema: Mapping[str, Any], tool: Tool) -> str:
    form: dict[str, Any] = dict(_JSON_FORM)
    if not tool.is_strict:
        form["lenient"] = True
    return "%json " + json.dumps({**schema, "x-guidance": form}, ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
