"""The grammar of calls and their parser are the same language: what the grammar admits, the parser reads."""

import json
import random
from typing import Any

import jsonschema
import pytest

from lltool.engine.calls.answer_format import AnswerFormat
from lltool.engine.calls.lark import CallGrammar
from lltool.engine.calls.tool import Tool
from lltool.engine.calls.writing import write_calls
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from tests.engine.calls.scripted import bytes_vocabulary
from tests.engine.calls.test_parser import FORMATS, IDS, parse

pytest.importorskip("llguidance")

from lltool.engine.grammar.compiler import GrammarCompiler
from lltool.engine.grammar.constraint import Constraint

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
NOTE = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
        "urgent": {"type": "boolean"},
        "more": {
            "type": "object",
            "properties": {"size": {"type": "number"}, "unit": {"type": ["boolean", "null"]}},
            "required": ["size"],
            "additionalProperties": False,
        },
    },
    "required": ["urgent"],
    "additionalProperties": False,
}
TOOLS = (Tool("get_weather", "", WEATHER), Tool("note", "", NOTE), Tool("now"))
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(bytes_vocabulary())


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.size)


def grammar(format: AnswerFormat, tools: tuple[Tool, ...] = TOOLS, **more: Any) -> CallGrammar:
    return CallGrammar(format, tools, control_ids={}, **more)


def walk(compiler: GrammarCompiler, tokenizer: Tokenizer, text: str, closers: list[bytes], seed: int) -> str:
    """A text that a grammar admits, chosen at random; texts without an end are ended by one of `closers`."""
    chance = random.Random(seed)
    matcher = compiler.matcher(Constraint.lark(text))
    ids: list[int] = []
    while not matcher.is_complete and len(ids) < 3000:
        if chance.random() < 0.3:
            close = list(chance.choice(closers))  # a byte's id is the byte
            if matcher.validate(close) == len(close):
                for id in close:
                    matcher.accept(id)
                ids += close
                continue
        mask = matcher.allowed()
        assert mask is not None
        allowed = [id for id in range(tokenizer.size) if int(mask[id // 32]) >> id % 32 & 1]
        id = chance.choice(allowed)
        if id in tokenizer.end_of_generation:
            break
        if 32 <= id < 127 or len(allowed) < 50 or chance.random() < 0.02:
            matcher.accept(id)
            ids.append(id)
    return tokenizer.decode(ids, special=True)


@pytest.mark.parametrize("format", FORMATS, ids=IDS)
def test_what_the_grammar_admits_is_read_and_valid(
    format: AnswerFormat, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    style = format.arguments
    closers = [b'"', b"}", b"]", *(quote.encode() for quote in getattr(style, "quotes", ()))]
    closers += [style.close.encode()] if hasattr(style, "close") else []
    if format.reasoning:
        closers.append(format.reasoning.close.encode())
    count = 0
    for seed in range(6):
        text = walk(compiler, tokenizer, grammar(format).required(may_reason=True), closers, seed)
        _, content, calls = parse(format, [text], tools=TOOLS)
        assert content.strip() == ""
        assert calls, text
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments, parse_constant=lambda _: pytest.fail("not JSON")), SCHEMAS[name])
        count += len(calls)
    assert count >= 6


@pytest.mark.parametrize("format", FORMATS, ids=IDS)
def test_what_a_template_writes_is_admitted(
    format: AnswerFormat, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("get_weather", {"city": "Köln", "days": 3}),
        ("note", {"tags": ["x", "y"], "urgent": True, "more": {"size": 1.5, "unit": None}}),
        ("now", {}),
    ]
    for some in [calls[:1], calls[1:2], calls[2:], calls][: 3 if format.is_single else 4]:
        text = write_calls(format, [(name, arguments, "abcdefghi") for name, arguments in some])
        for end in [token for token in ("<|call|>",) if format.is_single]:
            text = text.removesuffix(end)
        matcher = compiler.matcher(Constraint.lark(grammar(format).required(may_reason=False)))
        ids = tokenizer.encode(text.lstrip("\n"), add_special=False)
        assert matcher.validate(ids) == len(ids), text[: matcher.validate(ids)]


def test_one_call_only_without_parallel_calls(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    format = FORMATS[IDS.index(f"{len(FORMATS) - 3}-generic")]
    one = write_calls(format, [("now", {}, "")])
    ids = tokenizer.encode(one, add_special=False)
    for is_parallel in (True, False):
        text = grammar(format, is_parallel=is_parallel).required(may_reason=False)
        matcher = compiler.matcher(Constraint.lark(text))
        assert matcher.validate(ids + ids) == len(ids) * (1 + is_parallel)


def test_a_reference_within_the_schema_is_followed(compiler: GrammarCompiler) -> None:
    parameters = {
        "type": "object",
        "properties": {"where": {"$ref": "#/$defs/place"}},
        "required": ["where"],
        "$defs": {"place": {"enum": ["here", "there"]}},
    }
    for format in FORMATS:
        compiler.matcher(Constraint.lark(grammar(format, (Tool("go", "", parameters),)).required(may_reason=True)))


def test_what_tags_cannot_be_held_to_is_refused_if_strict() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "pattern": "x+"}}}
    tagged = next(format for format in FORMATS if format.name == "tagged")
    with pytest.raises(InputError, match="tool f: 'pattern' of a text cannot be enforced"):
        grammar(tagged, (Tool("f", "", parameters, is_strict=True),)).required(may_reason=False)
    grammar(tagged, (Tool("f", "", parameters),)).required(may_reason=False)
