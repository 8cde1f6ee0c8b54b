"""The same answer in the forms of llama-server, Anthropic, Ollama and OpenAI's responses, whole and streamed."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from lltool.engine.embed import embed
from lltool.engine.model import load_model
from lltool.gguf.metadata import string, u32
from tests.engine import tiny_gguf
from tests.engine.server.tiny_server import SETTINGS, TEMPLATE, events, running, write_tiny

MESSAGES = [{"role": "user", "content": "abc"}]


@pytest.fixture(scope="module")
def answer(client: TestClient) -> str:
    """What the chat completion of 10 tokens says."""
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 10}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    return str(choice["message"]["content"])


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def named_events(text: str) -> list[tuple[str, Any]]:
    """The names and the data of a stream whose events have names."""
    parts = [part.split("\n") for part in text.split("\n\n") if part]
    return [(head.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for head, data in parts]


def test_completion_of_llama_server(client: TestClient) -> None:
    body = {"prompt": "abc", "n_predict": 10, "temperature": 0, "n_probs": 2, "return_tokens": True}
    whole = client.post("/completion", json=body).json()
    other = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 10, "temperature": 0}).json()
    assert whole["content"] == other["choices"][0]["text"]
    assert client.post("/detokenize", json={"tokens": whole["tokens"]}).json()["content"] == whole["content"]
    assert (whole["stop"], whole["stop_type"], whole["tokens_predicted"], whole["tokens_evaluated"]) == (
        True, "limit", 10, 3,
    )  # fmt: skip
    assert whole["generation_settings"]["temperature"] == 0
    assert whole["generation_settings"]["n_predict"] == 10
    probabilities = whole["completion_probabilities"]
    assert [each["id"] for each in probabilities] == whole["tokens"]
    assert all(each["top_logprobs"][0]["id"] == each["id"] for each in probabilities)  # greedy
    *parts, last = [json.loads(data) for data in events(client.post("/completion", json={**body, "stream": True}).text)]
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [part["stop"] for part in parts] == [False] * len(parts)
    assert (last["stop"], last["content"], last["stop_type"]) == (True, "", "limit")
    word = client.post("/completion", json={**body, "stop": [whole["content"][3:5]]}).json()
    assert (word["stop_type"], word["stopping_word"]) == ("word", whole["content"][3:5])


def test_infill_needs_its_tokens(client: TestClient) -> None:
    response = client.post("/infill", json={"input_prefix": "a", "input_suffix": "b"})
    assert response.status_code == 501
    assert "no token for filling in" in response.json()["error"]["message"]


def test_infill_puts_the_parts_in_order(tmp_path: Path) -> None:
    """The letters P, S and M are declared as control tokens: the prompt must be Pab, Scd, M."""
    keys = {**tiny_gguf.metadata(), **tiny_gguf.vocabulary()}
    ids = {letter: ord(letter) - 33 for letter in "PSM"}
    keys |= {f"tokenizer.ggml.fim_{n}_token_id": u32(ids[x]) for n, x in (("pre", "P"), ("suf", "S"), ("mid", "M"))}
    path = tiny_gguf.write_model(tmp_path / "fim.gguf", keys, tiny_gguf.tensors())
    with running(path) as client:
        body = {"n_predict": 6, "temperature": 0, "logit_bias": [[letter, False] for letter in "PSM"]}
        parts = {"input_prefix": "a", "prompt": "b", "input_suffix": "cd"}
        found = client.post("/infill", json={**body, **parts}).json()
        assert found["content"] == client.post("/completion", json={**body, "prompt": "PabScdM"}).json()["content"]
        assert (found["tokens_evaluated"], found["tokens_predicted"]) == (7, 6)
        ended = client.post("/infill", json={**body, **parts, "logit_bias": [["S", 1000]]}).json()
        assert (ended["content"], ended["stop_type"], ended["tokens_predicted"]) == ("", "eos", 1)


def test_anthropic(client: TestClient, answer: str) -> None:
    body = {"model": "tiny", "max_tokens": 10, "temperature": 0, "messages": MESSAGES}
    whole = client.post("/v1/messages", json=body).json()
    assert whole["content"] == [{"type": "text", "text": answer}]
    assert (whole["type"], whole["role"], whole["stop_reason"]) == ("message", "assistant", "max_tokens")
    usage = whole["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len("[user:abc]>")
    assert usage["output_tokens"] == 10
    found = named_events(client.post("/v1/messages", json={**body, "stream": True}).text)
    assert [name for name, _ in found if name != "content_block_delta"] == [
        "message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert all(name == data["type"] for name, data in found)
    assert "".join(data["delta"]["text"] for name, data in found if name == "content_block_delta") == answer
    stopped = client.post("/v1/messages", json={**body, "stop_sequences": [answer[2:4]]}).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", answer[2:4])


def test_anthropic_s_system_and_count(client: TestClient) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "system": [{"type": "text", "text": "Hi"}]}
    count = client.post("/v1/messages/count_tokens", json=body).json()
    assert count == {"input_tokens": len("[system:Hi][user:abc]>")}


def test_anthropic_s_errors(client: TestClient) -> None:
    response = client.post("/v1/messages", json={"model": "tiny", "messages": MESSAGES})
    assert response.status_code == 400
    error = response.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert "max_tokens" in error["error"]["message"]


def test_responses(client: TestClient, answer: str) -> None:
    body = {"model": "tiny", "input": "abc", "temperature": 0, "max_output_tokens": 10}
    whole = client.post("/v1/responses", json=body).json()
    (item,) = whole["output"]
    assert item["content"] == [{"type": "output_text", "text": answer, "annotations": [], "logprobs": []}]
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == (len("[user:abc]>"), 10)
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "abc"}]}]
    found = named_events(client.post("/v1/responses", json={**body, "input": parts, "stream": True}).text)
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    deltas = [data["delta"] for name, data in found if name == "response.output_text.delta"]
    assert "".join(deltas) == answer
    assert [name for name, _ in found if not name.endswith(".delta")] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert found[-1][1]["response"]["output"][0]["content"] == item["content"]
    instructed = {**body, "instructions": "Hi"}
    assert client.post("/v1/responses", json=instructed).json()["usage"]["input_tokens"] == len(
        "[system:Hi][user:abc]>"
    )
    assert client.post("/v1/responses", json={**body, "previous_response_id": "x"}).status_code == 400


def test_reasoning_is_a_part_of_its_own(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "thinks.gguf", template=TEMPLATE + "{# </think> #}<think>")
    bias = {"logit_bias": [["Q", 1000]]}
    with running(path) as client:
        body = {"model": "thinks", "messages": MESSAGES, "max_tokens": 3, **bias}
        message = client.post("/v1/messages", json=body).json()
        assert message["content"][0] == {"type": "thinking", "thinking": "QQQ", "signature": ""}
        found = named_events(client.post("/v1/messages", json={**body, "stream": True}).text)
        starts = [data["content_block"]["type"] for name, data in found if name == "content_block_start"]
        assert starts == ["thinking", "text"]
        response = client.post("/v1/responses", json={"input": "abc", "max_output_tokens": 3, **bias}).json()
        assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
        assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
        options = {"num_predict": 3, **bias}
        chat = {"model": "thinks", "messages": MESSAGES, "options": options, "stream": False}
        assert client.post("/api/chat", json=chat).json()["message"]["thinking"] == "QQQ"


def test_ollama_chat(client: TestClient, answer: str) -> None:
    body = {"model": "tiny:latest", "messages": MESSAGES, "options": {"temperature": 0, "num_predict": 10}}
    response = client.post("/api/chat", json=body)
    assert response.headers["content-type"].startswith("application/x-ndjson")
    *parts, last = lines(response.text)
    assert "".join(part["message"]["content"] for part in parts) == answer
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 10)
    assert last["prompt_eval_count"] == len("[user:abc]>")
    whole = client.post("/api/chat", json={**body, "stream": False}).json()
    assert whole["message"] == {"role": "assistant", "content": answer}
    assert client.post("/api/chat", json={"model": "tiny", "messages": []}).json()["done_reason"] == "load"


def test_ollama_generate(client: TestClient, answer: str) -> None:
    body = {"model": "tiny", "prompt": "abc", "options": {"temperature": 0, "num_predict": 10}, "stream": False}
    assert client.post("/api/generate", json=body).json()["response"] == answer
    raw = client.post("/api/generate", json={**body, "raw": True}).json()
    plain = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 10, "temperature": 0}).json()
    assert raw["response"] == plain["choices"][0]["text"]
    error = client.post("/api/generate", json={**body, "format": "xml"})
    assert (error.status_code, list(error.json())) == (400, ["error"])


def test_ollama_s_lists(client: TestClient) -> None:
    (tag,) = client.get("/api/tags").json()["models"]
    assert (tag["name"], tag["details"]["family"], tag["details"]["format"]) == ("tiny", "gemma3", "gguf")
    assert client.get("/api/ps").json()["models"][0]["name"] == "tiny"
    assert client.get("/api/version").json()["version"]
    assert client.post("/api/show", json={"model": "tiny"}).json()["template"] == TEMPLATE


def test_embeddings(client: TestClient, tiny_path: Path) -> None:
    texts = ["abc", "x", "hello"]
    with load_model(tiny_path, output="hidden", **SETTINGS.load) as model:
        wanted = embed(model, [model.tokenizer.encode(text) for text in texts])
    answer = client.post("/v1/embeddings", json={"input": texts, "model": "tiny"}).json()
    vectors = np.array([row["embedding"] for row in answer["data"]])
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    assert answer["usage"]["prompt_tokens"] == 9
    coded = client.post("/v1/embeddings", json={"input": "abc", "encoding_format": "base64"}).json()
    decoded = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), np.float32)
    np.testing.assert_allclose(decoded, wanted[0], atol=1e-6)
    ollama = client.post("/api/embed", json={"model": "tiny", "input": "abc"}).json()
    np.testing.assert_allclose(ollama["embeddings"], wanted[:1], atol=1e-6)
    for bad in ([], "", ["a", ""], "a" * 300, [96]):
        assert client.post("/v1/embeddings", json={"input": bad}).status_code == 400


def test_an_unknown_pooling_is_501(tmp_path: Path) -> None:
    keys = {**tiny_gguf.metadata(pooling_type=u32(2)), **tiny_gguf.vocabulary()}
    keys["tokenizer.chat_template"] = string(TEMPLATE)
    path = tiny_gguf.write_model(tmp_path / "cls.gguf", keys, tiny_gguf.tensors())
    with running(path) as client:
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 501


def test_metrics_and_slots(tiny_path: Path) -> None:
    with running(tiny_path) as client:
        for _ in range(2):
            client.post("/v1/completions", json={"prompt": "a" * 70, "max_tokens": 5, "temperature": 0})
        client.post("/v1/completions", json={})
        client.get("/made-up")
        text = client.get("/metrics").text
        slots = client.get("/slots").json()
    found = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}
    assert found['lltool_requests_total{path="/v1/completions",status="200"}'] == 2
    assert found['lltool_requests_total{path="/v1/completions",status="400"}'] == 1
    assert found['lltool_requests_total{path="other",status="404"}'] == 1
    assert found['lltool_prompt_tokens_total{model="tiny"}'] == 140
    assert found['lltool_prompt_tokens_cached_total{model="tiny"}'] == 69  # all but the last one of the second prompt
    assert found['lltool_generated_tokens_total{model="tiny"}'] == 10
    assert found['lltool_first_token_seconds_count{model="tiny"}'] == 2
    assert found['lltool_generations_total{model="tiny",reason="length"}'] == 2
    assert found['lltool_requests_running{model="tiny"}'] == 0
    assert [slot["is_processing"] for slot in slots] == [False] * 4
