"""Answers are cut into reasoning, content and calls, wherever the pieces of the text end, and whatever the text is."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lltool.engine.calls.answer_format import AnswerFormat, TaggedArguments, Tags
from lltool.engine.calls.families import FAMILIES, GENERIC, THINK
from lltool.engine.calls.marks import Marks
from lltool.engine.calls.parser import AnswerParser
from lltool.engine.calls.reading import convert
from lltool.engine.calls.tool import Tool
from lltool.engine.calls.writing import write_calls

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
NOTE = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "urgent": {"type": "boolean"},
        "more": {"type": "object", "properties": {"size": {"type": "number"}, "unit": {"type": ["string", "null"]}}},
    },
}
TOOLS = (Tool("get_weather", "", WEATHER), Tool("get_weather_note", "", NOTE), Tool("now"))
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_weather", {"city": "Paris </x> \"q\" 'a' \\d é 你\n  b", "days": 3}),
    ("get_weather_note", {"text": "", "tags": ["x", "{y}"], "urgent": True, "more": {"size": 1.5, "unit": None}}),
    ("now", {}),
]
QWEN_CODER = AnswerFormat(
    name="tagged",
    reasoning=THINK,
    calls=("<tool_call>\n<function=$name>$arguments\n</function>\n</tool_call>",),
    separator="\n",
    arguments=TaggedArguments("\n<parameter=$key>\n", "\n</parameter>"),
)
MISTRAL = AnswerFormat(
    name="mistral",
    reasoning=Tags("[THINK]", "[/THINK]"),
    section=Tags("[TOOL_CALLS][", "]"),
    calls=('{"name": "$name", "arguments": $arguments, "id": "$id"}',),
    separator=", ",
)
FORMATS = [format for _, format in FAMILIES] + [GENERIC, QWEN_CODER, MISTRAL]
IDS = [f"{number}-{format.name}" for number, format in enumerate(FORMATS)]


def parse(
    format: AnswerFormat, pieces: Sequence[str], *, tools: Sequence[Tool] = TOOLS, **more: Any
) -> tuple[str, str, list[tuple[str, str]]]:
    """The reasoning, the content, and the calls with the JSON of their arguments, as a client puts them together."""
    parser = AnswerParser(format, tools=tools, **more)
    found = [*map(parser.push, pieces), parser.flush()]
    calls: list[tuple[str, str]] = []
    for each in found:
        for delta in each.calls:
            if delta.name is not None:
                assert delta.id
                assert delta.index == len(calls)
                calls.append((delta.name, ""))
            assert delta.index == len(calls) - 1  # calls come one after another
            calls[delta.index] = calls[delta.index][0], calls[delta.index][1] + delta.arguments
    assert [(call.name, call.arguments) for call in parser.calls] == calls
    return "".join(each.reasoning for each in found), "".join(each.content for each in found), calls


def cut(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def answer(format: AnswerFormat, calls: Sequence[tuple[str, dict[str, Any]]], content: str = "It is.\n\nWell") -> str:
    """An answer with reasoning, content and calls in a format."""
    tags = format.reasoning
    reasoned = f"{tags.open}Why?\n\nBecause. {tags.close}{format.resume}" if tags else ""
    if format.is_first:
        content = ""
    return reasoned + content + write_calls(format, [(name, arguments, "abcdefghi") for name, arguments in calls])


@pytest.mark.parametrize("format", FORMATS, ids=IDS)
def test_an_answer_comes_back_in_pieces_of_every_size(format: AnswerFormat) -> None:
    calls = CALLS[: 1 if format.is_single else None]
    text = answer(format, calls)
    results = {json.dumps(parse(format, cut(text, size))) for size in range(1, len(text) + 1)}
    assert len(results) == 1
    reasoning, content, found = json.loads(results.pop())
    assert reasoning == ("Why?\n\nBecause." if format.reasoning else "")
    assert content == ("" if format.is_first else "It is.\n\nWell")
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@pytest.mark.parametrize("format", FORMATS, ids=IDS)
def test_a_text_that_is_cut_off_gives_the_beginning_of_the_same(format: AnswerFormat) -> None:
    text = answer(format, CALLS[: 1 if format.is_single else None])
    reasoning, _content, calls = parse(format, [text])
    for end in range(len(text)):
        some = parse(format, [text[:end]])
        assert begins(reasoning, some[0].rstrip())
        for (name, arguments), (wanted, whole) in zip(some[2], calls, strict=False):
            assert name == wanted
            assert begins(whole, arguments)


def begins(whole: str, part: str) -> bool:
    """Whether a text begins like this, but for a closing tag that was cut off and is therefore text."""
    same = next((place for place, (a, b) in enumerate(zip(whole, part, strict=False)) if a != b), len(part))
    return len(part) - same < 30


@pytest.mark.parametrize("format", FORMATS, ids=IDS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_text_is_an_error(format: AnswerFormat, data: st.DataObject) -> None:
    """Parts of an answer in any order, with other texts between them."""
    text = answer(format, CALLS[:2])
    places = st.integers(0, len(text))
    parts = []
    for _ in range(data.draw(st.integers(1, 6))):
        start, end = sorted((data.draw(places), data.draw(places)))
        parts.append(text[start:end])
        parts.append(data.draw(st.text(alphabet='{}[]<>"\\|:,=()\n a1\ud800', max_size=6)))
    whole = "".join(parts)
    first = parse(format, parts)
    assert parse(format, cut(whole, data.draw(st.integers(1, 9)))) == first


def test_without_tools_a_call_is_text() -> None:
    text = write_calls(GENERIC, [("now", {}, "")])
    assert parse(GENERIC, [text], tools=()) == ("", text, [])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\nnow",
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "now", "arguments": 3}\n</tool_call>',
        '<tool_call>\n{"arguments": {}, "name": "now"}\n</tool_call>',
        'Use <tool_call> and </tool_call> around {"name": "now"}',
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    assert parse(GENERIC, cut(text, 3)) == ("", text, [])


def test_arguments_that_break_off_end_the_call() -> None:
    text = '<tool_call>\n{"name": "now", "arguments": {"a": [1}}'
    assert parse(GENERIC, cut(text, 4)) == ("", "}}", [("now", '{"a": [1')])


def test_white_space_may_differ_from_the_template() -> None:
    text = (
        '<tool_call>{ "name" : "now","arguments":{"a":1} }</tool_call>  <tool_call>\n\n{"name":"now", "arguments": {}}'
    )
    assert parse(GENERIC, [text])[2] == [("now", '{"a":1}'), ("now", "{}")]


def test_a_call_of_llama_is_the_whole_answer() -> None:
    llama = next(format for _, format in FAMILIES if format.name == "llama3")
    call = '{"name": "now", "parameters": {}}'
    assert parse(llama, [call]) == ("", "", [("now", "{}")])
    assert parse(llama, cut(f"Such as {call}", 5)) == ("", f"Such as {call}", [])


def test_a_control_token_is_no_text_that_looks_like_it() -> None:
    marks = Marks({"[TOOL_CALLS]": "\ud800"}, {7: "\ud800"})
    rest = '[{"name": "now", "arguments": {}, "id": "abcdefghi"}]'
    assert parse(MISTRAL, ["Hi\ud800", rest], marks=marks) == ("", "Hi", [("now", "{}")])
    assert parse(MISTRAL, ["[TOOL_CALLS]", rest], marks=marks) == ("", "[TOOL_CALLS]" + rest, [])
    assert parse(MISTRAL, ["a\ud800b"], marks=marks) == ("", "ab", [])


def test_harmony_reasons_and_speaks_in_any_order() -> None:
    harmony = next(format for _, format in FAMILIES if format.name == "gpt-oss")
    text = (
        "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>commentary<|message|>B<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>C<|end|><|start|>assistant<|channel|>final<|message|>D<|return|>"
    )
    assert {parse(harmony, cut(text, size))[:2] for size in range(1, 30)} == {("AC", "BD")}


REASONED = [
    ("Hello there", False, "", "Hello there"),
    ("<think>why\nnot</think>\n\nHello", False, "why\nnot", "Hello"),
    ("  \n<think>\nwhy</think>Hello </think>", False, "why", "Hello </think>"),
    ("why</think>Hello", True, "why", "Hello"),
    ("it goes on", True, "it goes on", ""),
    ("<think>it ends </thi", False, "it ends </thi", ""),
    ("<thin ice", False, "", "<thin ice"),
    ("<thi", False, "", "<thi"),
    ("A <think>tag</think> inside", False, "", "A <think>tag</think> inside"),
    ("<think></think>Hello", False, "", "Hello"),
]


@pytest.mark.parametrize(("text", "is_open", "reasoning", "content"), REASONED)
@given(data=st.data())
def test_reasoning_wherever_the_pieces_end(
    text: str, is_open: bool, reasoning: str, content: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    format = AnswerFormat(reasoning=THINK)
    assert parse(format, pieces, is_reasoning=is_open) == (reasoning, content, [])
    assert parse(format, pieces, is_reasoning=is_open, splits=False) == ("", text, [])


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("3", ["string"], "3"),
        ("3", ["integer"], 3),
        ("3", [], 3),
        ("3.0", ["integer"], 3),
        ("3", ["number"], 3),
        ("True", ["boolean"], True),
        ("None", ["string", "null"], None),
        ("3", ["string", "null"], "3"),
        ("['x', 'y']", ["array"], ["x", "y"]),
        ("[1, 2]", [], [1, 2]),
        ("Paris", ["integer"], "Paris"),
        ("NaN", ["number"], "NaN"),
        ("[" * 5000, ["array"], "[" * 5000),
    ],
)
def test_values_between_tags_have_the_type_of_their_schema(text: str, types: list[str], value: Any) -> None:
    assert convert(text, frozenset(types)) == value
    assert type(convert(text, frozenset(types))) is type(value)
