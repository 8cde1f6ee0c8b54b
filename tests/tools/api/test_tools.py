"""Tools of the library: functions become schemas, and replies have calls that can be made."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

import lltool
from lltool.engine.calls.read_tools import read_function, read_tools
from tests.engine.calls import templates
from tests.engine.calls.scripted import saying, write_bytes_model


def get_weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> str:
    """The weather of a city.

    It may be wrong.

    Args:
        city: The name of the city,
            in English
        days: How many days
        unit: The unit (choices: ["C", "F"])

    Returns:
        A text
    """
    return f"{days} days of rain in {city}"


def every_type(
    a: int | str,
    b: list[float],
    c: dict[str, bool],
    d: Optional[str] = None,  # noqa: UP045 (as people write it)
    e: float | None = None,
    f: Any = None,
) -> None:
    """Does nothing.

    Args:
        a: A
        b: B
        c: C
        d: D
        e: E
        f: F
    """


ASK = [{"role": "user", "content": "How is the weather?"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 3}}\n</tool_call>'
SAID = f"<think>\nHm.\n</think>\n\nI look.\n{CALL}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lltool.Model]:
    path = write_bytes_model(tmp_path_factory.mktemp("tools") / "hermes.gguf", templates.HERMES)
    with lltool.load(path, threads=1, context=4096, sequences=2) as model:
        yield model


@pytest.mark.parametrize("function", [get_weather, every_type])
def test_a_function_becomes_the_schema_that_transformers_makes(function: Callable[..., Any]) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    wanted = utils.get_json_schema(function)["function"]
    found = read_function(function)
    assert (found.name, found.description) == (wanted["name"], wanted["description"])
    assert json.loads(json.dumps(found.parameters)) == wanted["parameters"]


def test_a_function_without_types_is_refused() -> None:
    with pytest.raises(lltool.InputError, match="tool <lambda>: argument x has no type hint"):
        read_tools([lambda x: x])

    def complex_one(x: complex) -> None: ...

    with pytest.raises(lltool.InputError, match="argument x has the type <class 'complex'>, which JSON has not"):
        read_function(complex_one)


def test_a_reply_has_calls_that_can_be_made(model: lltool.Model) -> None:
    with saying([SAID, "It rains."], model.tokenizer):
        reply = model.chat(ASK, tools=[get_weather])
        assert (reply.content, reply.reasoning, reply.reason) == ("I look.", "Hm.", "tool_calls")
        (call,) = reply.calls
        assert get_weather(**call.parsed) == "3 days of rain in Köln"
        result = {"role": "tool", "tool_call_id": call.id, "content": get_weather(**call.parsed)}
        last = model.chat([*ASK, reply.message, result], tools=[get_weather])
    assert (last.content, last.calls, last.reason) == ("It rains.", [], "stop")


def test_a_streamed_reply_gives_pieces(model: lltool.Model) -> None:
    with saying([SAID], model.tokenizer):
        reply = model.chat(ASK, tools=[get_weather], stream=True)  # type: ignore[call-overload]
        pieces = list(reply)
    assert "".join(piece.content for piece in pieces) == "I look."
    assert "".join(call.arguments for piece in pieces for call in piece.calls) == '{"city": "Köln", "days": 3}'


def test_a_call_can_be_demanded_of_a_random_model(tmp_path: Path) -> None:
    numbers = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    tools = [{"name": "pick", "parameters": numbers | {"additionalProperties": False}}, {"name": "other"}]
    path = write_bytes_model(tmp_path / "plain.gguf", templates.PLAIN)
    with lltool.load(path, threads=1, context=4096) as model:
        (call,) = model.chat(ASK, tools=tools, tool_choice="pick", seed=3, max_tokens=500).calls
    assert call.name == "pick"
    assert call.parsed in ({"n": 1}, {"n": 2})


def test_a_choice_that_is_no_tool_is_refused(model: lltool.Model) -> None:
    with pytest.raises(lltool.InputError, match="tool choice 'x', wanted none, auto, required or a tool's name"):
        model.chat(ASK, tools=[get_weather], tool_choice="x")


def test_beside_tools_an_answer_follows_a_schema(model: lltool.Model) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    with saying(['{"a": 1}', SAID.replace("I look.\n", "")], model.tokenizer):
        reply = model.chat(ASK, tools=[get_weather], schema=schema)  # type: ignore[call-overload]
        assert (reply.content, reply.calls) == ('{"a": 1}', [])
        called = model.chat(ASK, tools=[get_weather], schema=schema)  # type: ignore[call-overload]
    assert [call.name for call in called.calls] == ["get_weather"]
    with pytest.raises(lltool.InputError, match="beside tools, an answer can be constrained to a JSON schema only"):
        model.chat(ASK, tools=[get_weather], regex="a+")
