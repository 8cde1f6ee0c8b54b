"""The clients that people call tools with: OpenAI's streaming helper, LangChain, pydantic-ai and Anthropic's."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from tests.engine.calls import templates
from tests.engine.calls.scripted import saying, write_bytes_model
from tests.engine.server.test_tools import ASK, CALLS, LOAD, NOW, ONE, SAID, WEATHER
from tests.engine.server.tiny_server import running

URL = "http://127.0.0.1:8080/v1"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = write_bytes_model(tmp_path_factory.mktemp("tools") / "hermes.gguf", templates.HERMES)
    with running(path, load=LOAD) as client:
        yield client


@pytest.fixture
def tokenizer(client: TestClient) -> Any:
    return client.app.state.registry.loaded[0].tokenizer  # type: ignore[attr-defined]


def test_openai_streaming_helper(client: TestClient, tokenizer: Any) -> None:
    import openai

    api = openai.OpenAI(base_url=URL, api_key="-", http_client=client)
    done = []
    with (
        saying([SAID], tokenizer),
        api.chat.completions.stream(model="hermes", messages=ASK, tools=[WEATHER, NOW]) as stream,  # type: ignore
    ):
        for event in stream:
            if event.type == "tool_calls.function.arguments.done":
                done.append((event.name, json.loads(event.arguments)))
        final = stream.get_final_completion()
    assert done == CALLS
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.content == "Let me see."


def test_openai_parses_arguments_into_a_model(client: TestClient, tokenizer: Any) -> None:
    import openai

    class get_weather(BaseModel):
        """The weather."""

        city: str
        days: int

    api = openai.OpenAI(base_url=URL, api_key="-", http_client=client)
    with saying([ONE], tokenizer):
        tool = openai.pydantic_function_tool(get_weather)  # which is strict
        parsed = api.chat.completions.parse(model="hermes", messages=ASK, tools=[tool])  # type: ignore
    (call,) = parsed.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == get_weather(city="Köln", days=3)


def test_openai_responses(client: TestClient, tokenizer: Any) -> None:
    import openai

    api = openai.OpenAI(base_url=URL, api_key="-", http_client=client)
    tool: Any = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
    with (
        saying([SAID.partition(ONE)[0] + ONE], tokenizer),
        api.responses.stream(model="hermes", input="Weather?", tools=[tool]) as stream,
    ):
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]


def test_anthropic_streaming_helper(client: TestClient, tokenizer: Any) -> None:
    import anthropic

    api = anthropic.Anthropic(base_url=URL.removesuffix("/v1"), api_key="-", http_client=client)
    tools: Any = [{"name": tool["function"]["name"], "input_schema": {"type": "object"}} for tool in (WEATHER, NOW)]  # type: ignore[index]
    tools[0]["input_schema"] = WEATHER["function"]["parameters"]  # type: ignore[index]
    with (
        saying([SAID], tokenizer),
        api.messages.stream(model="hermes", messages=ASK, tools=tools, max_tokens=1000) as stream,  # type: ignore
    ):
        final = stream.get_final_message()
    found = [(block.name, block.input) for block in final.content if block.type == "tool_use"]
    assert found == CALLS
    assert final.stop_reason == "tool_use"


def test_langchain_bind_tools(client: TestClient, tokenizer: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def get_weather(city: str, days: int = 1) -> str:
        """The weather of a city."""
        return f"rain in {city} for {days} days"

    @tool
    def now() -> str:
        """The time."""
        return "noon"

    chat: Any = ChatOpenAI(base_url=URL, api_key="-", model="hermes", http_client=client).bind_tools([get_weather, now])
    with saying([SAID, "It rains.", SAID], tokenizer):
        answer = chat.invoke([HumanMessage("Weather?")])
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == CALLS
        results = [
            ToolMessage(
                {"get_weather": get_weather, "now": now}[call["name"]].invoke(call["args"]), tool_call_id=call["id"]
            )
            for call in answer.tool_calls
        ]
        assert results[0].content == "rain in Köln for 3 days"
        assert chat.invoke([HumanMessage("Weather?"), answer, *results]).content == "It rains."
        whole = None
        for chunk in chat.stream([HumanMessage("Weather?")]):
            whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == CALLS


def test_pydantic_ai_runs_tools(client: TestClient, tokenizer: Any) -> None:
    import anyio
    import httpx2 as httpx
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            body = await request.aread()
            found = await anyio.to_thread.run_sync(
                lambda: client.request(request.method, str(request.url), content=body, headers=dict(request.headers))
            )
            return httpx.Response(
                found.status_code, content=found.content, headers={"content-type": "application/json"}
            )

    model = OpenAIChatModel(
        "hermes",
        provider=OpenAIProvider(base_url=URL, api_key="-", http_client=httpx.AsyncClient(transport=Transport())),
    )
    agent = Agent(model)
    asked = []

    @agent.tool_plain
    def get_weather(city: str, days: int) -> str:
        """The weather."""
        asked.append((city, days))
        return "rain"

    with saying([ONE, "It rains."], tokenizer):
        result = agent.run_sync("How is the weather?")
    assert asked == [("Köln", 3)]
    assert result.output == "It rains."
