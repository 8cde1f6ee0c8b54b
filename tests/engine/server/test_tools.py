"""Calls of tools in the four dialects, whole and streamed, of a model that says what the test wants."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.engine.calls import templates
from tests.engine.calls.scripted import saying, write_bytes_model
from tests.engine.server.tiny_server import events, running

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now", "description": "The time."}}
ASK = [{"role": "user", "content": "How is the weather?"}]
ONE = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 3}}\n</tool_call>'
TWO = f'{ONE}\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>'
SAID = f"<think>\nA <tool_call>?\n</think>\n\nLet me see.\n{TWO}"
CALLS = [("get_weather", {"city": "Köln", "days": 3}), ("now", {})]
LOAD = {"context": 4096, "threads": 1}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = write_bytes_model(tmp_path_factory.mktemp("tools") / "hermes.gguf", templates.HERMES)
    with running(path, load=LOAD) as client:
        yield client


def post(client: TestClient, path: str, said: str, **body: Any) -> Any:
    (served,) = client.app.state.registry.loaded  # type: ignore[attr-defined]
    with saying([said], served.tokenizer):
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    if body.get("stream"):
        return [json.loads(data.rpartition("data: ")[2]) for data in events(response.text) if "[DONE]" not in data]
    return response.json()


def read_calls(calls: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def test_openai_answers_with_reasoning_content_and_calls(client: TestClient) -> None:
    (choice,) = post(client, "/v1/chat/completions", SAID, messages=ASK, tools=[WEATHER, NOW])["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["reasoning_content"] == "A <tool_call>?"
    assert message["content"] == "Let me see."
    assert read_calls(message["tool_calls"]) == CALLS
    assert all(call["type"] == "function" and len(call["id"]) == 9 for call in message["tool_calls"])


def test_openai_streams_names_and_then_arguments(client: TestClient) -> None:
    chunks = post(client, "/v1/chat/completions", SAID, messages=ASK, tools=[WEATHER, NOW], stream=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    pieces = [call for delta in deltas for call in delta.get("tool_calls", [])]
    names = [(piece["index"], piece["function"]["name"]) for piece in pieces if "id" in piece]
    assert names == [(0, "get_weather"), (1, "now")]
    arguments = ["".join(each["function"]["arguments"] for each in pieces if each["index"] == n) for n in (0, 1)]
    assert [json.loads(text) for text in arguments] == [{"city": "Köln", "days": 3}, {}]
    assert len([piece for piece in pieces if piece["index"] == 0]) > 5  # in pieces
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "A <tool_call>?"
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_text_without_a_call_is_an_answer(client: TestClient) -> None:
    (choice,) = post(client, "/v1/chat/completions", "It rains.", messages=ASK, tools=[WEATHER])["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {"role": "assistant", "content": "It rains."}


def test_none_is_no_tools(client: TestClient) -> None:
    body = {"messages": ASK, "tools": [WEATHER], "tool_choice": "none"}
    (choice,) = post(client, "/v1/chat/completions", ONE, **body)["choices"]
    assert choice["message"] == {"role": "assistant", "content": ONE}
    prompt = client.post("/apply-template", json=body).json()["prompt"]
    assert "get_weather" not in prompt
    assert "get_weather" in client.post("/apply-template", json={**body, "tool_choice": "auto"}).json()["prompt"]


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "function": {"name": "get_weather"}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"name": "get_weather"}]}},
    ],
)
def test_a_call_can_be_demanded(client: TestClient, choice: Any) -> None:
    body = {"messages": ASK, "tools": [WEATHER, NOW], "tool_choice": choice, "max_tokens": 400}
    (served,) = client.app.state.registry.loaded  # type: ignore[attr-defined]
    response = client.post("/v1/chat/completions", json={**body, "seed": 1, "temperature": 0})  # it says anything
    found = response.json()["choices"][0]
    if found["finish_reason"] != "length":
        assert found["message"]["tool_calls"]
    (choice_found,) = post(client, "/v1/chat/completions", f"<think>\nHm.\n</think>\n\n{ONE}", **body)["choices"]
    assert read_calls(choice_found["message"]["tool_calls"]) == CALLS[:1]
    assert served.chat_format.format.name == "derived"


def test_what_is_not_allowed_is_refused_by_the_grammar(client: TestClient) -> None:
    body = {"messages": ASK, "tools": [WEATHER, NOW]}
    wrong = ONE.replace("3", '"3"')
    named = {"type": "function", "function": {"name": "now"}}
    for said, more in (
        (wrong, {}),
        ("It rains.", {"tool_choice": "required"}),
        (ONE, {"tool_choice": named}),
        (TWO, {"parallel_tool_calls": False}),
    ):
        (served,) = client.app.state.registry.loaded  # type: ignore[attr-defined]
        with saying([said], served.tokenizer):
            response = client.post("/v1/chat/completions", json={**body, **more})
        # A complete grammar ends the answer, so that a second call is not even tried.
        if more.get("parallel_tool_calls") is False:
            assert read_calls(response.json()["choices"][0]["message"]["tool_calls"]) == CALLS[:1]
        else:
            assert "the grammar refuses" in response.json()["error"]["message"]


def test_a_cut_off_call_ends_for_its_length(client: TestClient) -> None:
    body = {"messages": ASK, "tools": [WEATHER], "max_tokens": 70}
    (choice,) = post(client, "/v1/chat/completions", ONE, **body)["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"city": "K')


def test_several_answers_have_calls_of_their_own(client: TestClient) -> None:
    (served,) = client.app.state.registry.loaded  # type: ignore[attr-defined]
    with saying([ONE, "It rains.", TWO], served.tokenizer):
        body = {"messages": ASK, "tools": [WEATHER, NOW], "n": 3, "logprobs": True}
        choices = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls", "stop", "tool_calls"]
    assert read_calls(choices[2]["message"]["tool_calls"]) == CALLS
    assert all(choice["logprobs"]["content"] for choice in choices)


def test_results_go_back_through_the_template(client: TestClient) -> None:
    call = {"id": "abc", "type": "function", "function": {"name": "now", "arguments": '{"zone": "CET"}'}}
    messages = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "abc", "content": "noon"})
    prompt = client.post("/apply-template", json={"messages": messages, "tools": [NOW]}).json()["prompt"]
    assert '<tool_call>\n{"name": "now", "arguments": {"zone": "CET"}}\n</tool_call>' in prompt
    assert "<|im_start|>tool\nnoon<|im_end|>" in prompt


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "none of the tools"),
        ({"tools": [WEATHER], "tool_choice": "perhaps"}, "tool_choice: wanted"),
        ({"tools": [WEATHER, WEATHER]}, "two have the name 'get_weather'"),
        ({"tools": [{"type": "web_search"}]}, "of type 'web_search'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0: name 'a b'"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "wanted the JSON schema"),
    ],
)
def test_what_is_malformed_is_refused(client: TestClient, body: dict[str, Any], part: str) -> None:
    response = client.post("/v1/chat/completions", json={"messages": ASK, **body})
    assert response.status_code == 400
    assert part in response.json()["error"]["message"]


def test_a_strict_schema_that_cannot_be_enforced_is_refused(client: TestClient) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    function = {"name": "f", "parameters": parameters}
    body: dict[str, Any] = {"messages": ASK, "tools": [{"type": "function", "function": {**function, "strict": True}}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert "uniqueItems" in response.json()["error"]["message"]
    body["tools"][0]["function"]["strict"] = False
    post(client, "/v1/chat/completions", '<tool_call>\n{"name": "f", "arguments": {"a": [1, 1]}}\n</tool_call>', **body)


def test_responses_have_items_of_calls(client: TestClient) -> None:
    tools = [{"type": "function", **WEATHER["function"]}, {"type": "function", **NOW["function"]}]  # type: ignore[dict-item]
    answer = post(client, "/v1/responses", SAID, input="How is the weather?", tools=tools)
    kinds = [item["type"] for item in answer["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert [(item["name"], json.loads(item["arguments"])) for item in answer["output"][2:]] == CALLS
    streamed = post(client, "/v1/responses", SAID, input="How is the weather?", tools=tools, stream=True)
    done = [each["item"] for each in streamed if each["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == kinds
    pieces = [each for each in streamed if each["type"] == "response.function_call_arguments.delta"]
    assert "".join(each["delta"] for each in pieces if each["output_index"] == 2) == '{"city": "Köln", "days": 3}'
    called = done[2]
    again = [
        {"role": "user", "content": "How is the weather?"},
        called,
        {"type": "function_call_output", "call_id": called["call_id"], "output": "rain"},
    ]
    post(client, "/v1/responses", "It rains.", input=again, tools=tools)


def test_anthropic_has_blocks_of_calls(client: TestClient) -> None:
    tools = [
        {"name": "get_weather", "input_schema": PARAMETERS},
        {"name": "now", "input_schema": {}},
    ]
    body: dict[str, Any] = {"messages": ASK, "tools": tools, "max_tokens": 1000}
    answer = post(client, "/v1/messages", SAID, **body)
    assert answer["stop_reason"] == "tool_use"
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert [(block["name"], block["input"]) for block in answer["content"][2:]] == CALLS
    streamed = post(client, "/v1/messages", SAID, stream=True, **body)
    begun = [each["content_block"] for each in streamed if each["type"] == "content_block_start"]
    assert [block["type"] for block in begun] == ["thinking", "text", "tool_use", "tool_use"]
    parts = [each["delta"]["partial_json"] for each in streamed if each.get("delta", {}).get("partial_json")]
    assert "".join(parts) == '{"city": "Köln", "days": 3}{}'
    assert len([each for each in streamed if each["type"] == "content_block_stop"]) == 4
    text = {"type": "text", "text": "rain"}
    result = {"type": "tool_result", "tool_use_id": answer["content"][2]["id"], "content": [text]}
    messages = [*ASK, {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": [result]}]
    more = post(client, "/v1/messages", "It rains.", **{**body, "messages": messages, "tool_choice": {"type": "auto"}})
    assert more["content"] == [{"type": "text", "text": "It rains."}]
    assert more["stop_reason"] == "end_turn"


def test_ollama_has_calls_with_objects(client: TestClient) -> None:
    body: dict[str, Any] = {"model": "hermes", "messages": ASK, "tools": [WEATHER, NOW]}
    answer = post(client, "/api/chat", SAID, stream=False, **body)
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in answer["message"]["tool_calls"]]
    assert calls == CALLS
    (served,) = client.app.state.registry.loaded  # type: ignore[attr-defined]
    with saying([SAID], served.tokenizer):
        lines = [json.loads(line) for line in client.post("/api/chat", json=body).text.splitlines()]
    messages = [line["message"] for line in lines]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", [])]
    assert [(call["name"], call["arguments"]) for call in calls] == CALLS
    assert "".join(message["content"] for message in messages) == "Let me see."
    earlier = {"role": "assistant", "content": "", "tool_calls": answer["message"]["tool_calls"]}
    result = {"role": "tool", "content": "rain", "tool_name": "get_weather"}
    again = post(client, "/api/chat", "It rains.", stream=False, **{**body, "messages": [*ASK, earlier, result]})
    assert again["message"]["content"] == "It rains."


FAMILIES = [
    ("TAGGED", "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n"
     "</parameter>\n</function>\n</tool_call>"),
    ("GLM", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n"
     "<arg_value>3</arg_value>\n</tool_call>"),
    ("MISTRAL", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Köln", "days": 3}, "id": "abcdefghi"}]'),
    ("MISTRAL_NEW", '[TOOL_CALLS]get_weather[ARGS]{"city": "Köln", "days": 3}'),
    ("DEEPSEEK", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Köln", "days": 3}'
     "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
    ("NAMED", '<|tools_prefix|>[{"get_weather": {"city": "Köln", "days": 3}}]<|tools_suffix|>'),
    ("HARMONY", "<|channel|>analysis<|message|>Is it to=functions.get_weather?<|end|><|start|>assistant<|channel|>"
     'commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Köln", "days": 3}'),
    ("PLAIN", ONE),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_each_family_calls_in_its_own_format(tmp_path: Path, name: str, said: str) -> None:
    path = write_bytes_model(tmp_path / "model.gguf", getattr(templates, name))
    call = {"id": "call_of_another_server", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [*ASK, {"role": "assistant", "tool_calls": [call]}]
    messages += [{"role": "tool", "tool_call_id": call["id"], "content": "noon"}, *ASK]
    with running(path, load=LOAD) as client:
        for choice in ("auto", "required"):
            body = {"messages": messages, "tools": [WEATHER, NOW], "tool_choice": choice}
            (found,) = post(client, "/v1/chat/completions", said, **body)["choices"]
            assert read_calls(found["message"]["tool_calls"]) == CALLS[:1]
            assert found["finish_reason"] == "tool_calls"
            assert not found["message"]["content"]
