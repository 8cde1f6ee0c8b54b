"""Constrained answers through each client's own fields."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.engine.server.tiny_server import events, running, write_tiny

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ab", "cd"]}, "n": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
STRICT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
MESSAGES = [{"role": "user", "content": "abc"}]
GRAMMAR = 'root ::= "x"{2,4} [0-9]'


def is_schema(text: str) -> bool:
    found = json.loads(text)
    return set(found) == {"name", "n"} and found["name"] in ("ab", "cd") and 10 <= found["n"] <= 99


def is_grammar(text: str) -> bool:
    return re.fullmatch("x{2,4}[0-9]", text) is not None


CASES = [
    ({"response_format": FORMAT}, is_schema),
    ({"response_format": STRICT}, is_schema),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, is_schema),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, is_schema),
    ({"json_schema": SCHEMA}, is_schema),
    ({"grammar": GRAMMAR}, is_grammar),
    ({"grammar": "%llguidance {}\nstart: /x{2,4}/ /[0-9]/"}, is_grammar),
    ({"response_format": {"type": "grammar", "grammar": GRAMMAR}}, is_grammar),
    ({"structured_outputs": {"json": SCHEMA}}, is_schema),
    ({"structured_outputs": {"regex": "x{2,4}[0-9]"}}, is_grammar),
    ({"structured_outputs": {"choice": ["xx1", "xxx2"]}}, is_grammar),
    ({"structured_outputs": {"grammar": GRAMMAR}}, is_grammar),
]


@pytest.mark.parametrize(("fields", "is_valid"), CASES)
def test_answers_follow_what_a_request_says(client: TestClient, fields: dict[str, Any], is_valid: Any) -> None:
    body = {"messages": MESSAGES, "temperature": 1.5, "max_tokens": 60, "n": 3, "seed": 1, **fields}
    choices = client.post("/v1/chat/completions", json=body).json()["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert [text for text in texts if not is_valid(text)] == []
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    body = {"prompt": "abc", "temperature": 1.5, "max_tokens": 60, "n": 2, **fields}
    answer = client.post("/v1/completions", json=body).json()
    assert all(is_valid(choice["text"]) for choice in answer["choices"])
    body = {"prompt": "abc", "temperature": 1.5, "n_predict": 60, **fields}
    assert is_valid(client.post("/completion", json=body).json()["content"])


def test_a_stream_with_log_probabilities_has_the_same_text(client: TestClient) -> None:
    body = {"messages": MESSAGES, "temperature": 1.5, "max_tokens": 60, "seed": 3, "response_format": FORMAT}
    plain = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    scored = client.post("/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": 2}).json()["choices"][
        0
    ]
    assert is_schema(plain)
    assert scored["message"]["content"] == plain
    content = scored["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == plain
    assert all(each["logprob"] < 0 for each in content)
    chunks = events(client.post("/v1/chat/completions", json={**body, "stream": True}).text)[:-1]
    deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert "".join(deltas) == plain


def test_a_json_object_is_one(client: TestClient) -> None:
    body = {
        "messages": MESSAGES,
        "max_tokens": 200,
        "response_format": {"type": "json_object"},
        "logit_bias": {"92": 8},
    }
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_other_dialects(client: TestClient) -> None:
    format = {"type": "json_schema", "name": "x", "schema": SCHEMA}
    answer = client.post("/v1/responses", json={"input": "abc", "text": {"format": format}}).json()
    assert is_schema(answer["output"][-1]["content"][0]["text"])
    body = {
        "messages": MESSAGES,
        "max_tokens": 60,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    assert is_schema(client.post("/v1/messages", json=body).json()["content"][-1]["text"])
    body = {"model": "tiny", "messages": MESSAGES, "stream": False, "format": SCHEMA}
    assert is_schema(client.post("/api/chat", json=body).json()["message"]["content"])
    for raw in (False, True):
        body = {"model": "tiny", "prompt": "abc", "raw": raw, "stream": False, "format": SCHEMA}
        assert is_schema(client.post("/api/generate", json=body).json()["response"])
    body = {"model": "tiny", "prompt": "abc", "stream": False, "format": "json", "options": {"num_predict": 3}}
    assert client.post("/api/generate", json=body).json()["response"].startswith("{")


def test_a_lazy_grammar_begins_at_a_trigger(client: TestClient) -> None:
    body = {
        "prompt": "abc",
        "n_predict": 4,
        "grammar": 'root ::= "Q" [0-9] "!"',
        "grammar_lazy": True,
        "grammar_triggers": [{"type": 1, "value": "Q"}],
        "logit_bias": [["Q", 100]],
    }
    assert re.fullmatch("Q[0-9]!", client.post("/completion", json=body).json()["content"])
    refused = client.post("/completion", json={**body, "grammar_triggers": [{"type": 2, "value": "Q+"}]})
    assert refused.status_code == 400
    assert "takes no patterns" in refused.json()["error"]["message"]


def test_a_constraint_begins_after_the_reasoning(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>{# </think> #}"
    bias = [["</think>", 0.0], ["Q", 1000]]
    with running(write_tiny(tmp_path / "tiny.gguf", template=template)) as client:
        body = {"messages": MESSAGES, "max_tokens": 8, "structured_outputs": {"regex": "[0-9]"}, "logit_bias": bias}
        message = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert message["reasoning_content"] == "Q" * 8  # the constraint leaves the reasoning alone
    assert message["content"] == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grammar": "root ::= x"}, "grammar: rule 'root': no rule 'x'"),
        ({"grammar": 'root ::= root "a"'}, "left recursion"),
        ({"grammar": GRAMMAR, "json_schema": SCHEMA}, "grammar and json_schema: an answer can have one constraint"),
        ({"json_schema": {"not": {}}}, 'JSON schema: Unimplemented keys: ["not"]'),
        ({"json_schema": {"$ref": "http://127.0.0.1:1/x"}}, "127.0.0.1"),
        ({"json_schema": {"enum": ["x" * 2_000_000]}}, "JSON schema: has 2"),
        ({"response_format": {"type": "xml"}}, "response_format: type 'xml', wanted text"),
        ({"response_format": {"type": "json_schema"}}, "a json_schema without a schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, "JSON schema"),
        ({"response_format": {"type": "structural_tag", "format": {}}}, "structural tag: wanted `structures`"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "wanted one of json, regex"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "wanted one of json, regex"),
        ({"structured_outputs": {"regex": "(?=a)"}}, "look-around"),
        ({"structured_outputs": {"choice": "ab"}}, "choices"),
        ({"grammar": GRAMMAR, "grammar_lazy": True}, "grammar_lazy: wants grammar_triggers"),
        ({"guided_json": {}}, ""),
        ({"guided_regex": "a"}, "guided_regex: write it in structured_outputs"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_generated(
    client: TestClient, fields: dict[str, Any], message: str
) -> None:
    response = client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1, **fields})
    if not message:  # an empty object asks for nothing
        assert response.status_code == 200
        return
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
