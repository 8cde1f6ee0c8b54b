"""OpenAI's endpoints: what they answer is what the engine gives in this process."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from lltool.engine.generate import generate
from lltool.engine.model import load_model
from lltool.engine.sampling import Sampler
from tests.engine.server.tiny_server import CONTEXT, SETTINGS, events, running, write_tiny

CHAT = {"messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_tokens": 12}
RENDERED = "[user:abc]>"


def continued(path: Path, prompt: str | list[int], count: int, **sampling: Any) -> tuple[str, list[int]]:
    """The text and the tokens that the engine generates without a server."""
    with load_model(path, **SETTINGS.load) as model:
        ids = model.tokenizer.with_begin(model.tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt
        tokens = list(generate(model, ids, sampler=Sampler(**{"temperature": 0, **sampling}), max_tokens=count))
    return "".join(token.text for token in tokens), [token.id for token in tokens]


def log_probabilities(path: Path, ids: Sequence[int]) -> NDArray[np.float64]:
    """The log-softmax of the logits after each token, (n, V)."""
    with load_model(path, **SETTINGS.load) as model:
        logits = model.forward([(model.new_sequence(), list(ids), "all")]).all().astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def test_chat_answers_as_the_engine(client: TestClient, tiny_path: Path) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT).json()
    text, ids = continued(tiny_path, RENDERED, 12)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "length"
    prompt = len(RENDERED)  # every letter is a token
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (prompt, 12, prompt + 12)
    assert len(ids) == answer["timings"]["predicted_n"] == 12
    assert answer["model"] == "tiny"


def test_stream_has_the_same_text_and_the_usage(client: TestClient) -> None:
    whole = client.post("/v1/chat/completions", json=CHAT).json()
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    *parts, usage = parsed
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert text == whole["choices"][0]["message"]["content"]
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] > 0  # the same prompt was asked before


def test_a_last_message_of_the_assistant_is_continued(client: TestClient, tiny_path: Path) -> None:
    messages = [*CHAT["messages"], {"role": "assistant", "content": "xyz"}]  # type: ignore[misc]
    answer = client.post("/v1/chat/completions", json={**CHAT, "messages": messages}).json()
    assert answer["choices"][0]["message"]["content"] == continued(tiny_path, RENDERED + "xyz", 12)[0]


def test_stop_ends_before_the_text(client: TestClient, tiny_path: Path) -> None:
    text = continued(tiny_path, "abc", 12)[0]
    stop = text[4:6]
    body = {"prompt": "abc", "temperature": 0, "max_tokens": 12, "stop": [stop], "logprobs": 0}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    wanted = text[: text.index(stop)]
    assert (choice["text"], choice["finish_reason"]) == (wanted, "stop")
    assert "".join(choice["logprobs"]["tokens"]) == wanted


def test_seeds_give_the_engine_s_tokens(client: TestClient, tiny_path: Path) -> None:
    body = {"prompt": "abc", "temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0, "seed": 7, "max_tokens": 20}
    answer = client.post("/v1/completions", json={**body, "n": 3}).json()
    settings = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.0}
    for number, choice in enumerate(answer["choices"]):
        assert choice["index"] == number
        assert choice["text"] == continued(tiny_path, "abc", 20, **settings, seed=7 + number)[0]
    assert len({choice["text"] for choice in answer["choices"]}) == 3
    assert answer["usage"]["prompt_tokens"] == 3  # once for all answers


def test_llama_server_s_names_are_known(client: TestClient, tiny_path: Path) -> None:
    body = {"prompt": "abc", "n_predict": 20, "seed": 3, "temperature": 1.0, "samplers": "k;temperature"}
    assert client.post("/v1/completions", json=body).status_code == 400
    body |= {"samplers": ["top_k", "temperature"], "top_k": 5, "penalty_repeat": 1.5, "typ_p": 0.9}
    found = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    settings = {"temperature": 1.0, "samplers": ["top_k", "temperature"], "top_k": 5, "repeat_penalty": 1.5}
    assert found == continued(tiny_path, "abc", 20, **settings, seed=3)[0]


def test_logit_bias_in_both_forms(client: TestClient) -> None:
    ids = client.post("/tokenize", json={"content": "Q"}).json()["tokens"]
    for bias in ({str(ids[0]): 1000}, [[ids[0], 1000.0]], [["Q", 1000]]):
        body = {"prompt": "abc", "max_tokens": 5, "temperature": 0, "logit_bias": bias}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "QQQQQ"
    first = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 1, "temperature": 0}).json()
    never = [[first["choices"][0]["text"], False]]
    body = {"prompt": "abc", "max_tokens": 1, "temperature": 0, "logit_bias": never}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] != first["choices"][0]["text"]


def test_chat_logprobs_are_those_of_the_softmax(client: TestClient, tiny_path: Path) -> None:
    body = {**CHAT, "logprobs": True, "top_logprobs": 5}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    content = choice["logprobs"]["content"]
    with load_model(tiny_path, **SETTINGS.load) as model:
        prompt = model.tokenizer.with_begin(model.tokenizer.encode(RENDERED))
    rows = log_probabilities(tiny_path, [*prompt, *(token["id"] for token in content)])[len(prompt) - 1 :]
    assert len(content) == 12
    for row, token in zip(rows, content, strict=False):
        best = np.argsort(-row)[:5]
        assert token["logprob"] == pytest.approx(row[token["id"]], abs=1e-9)
        assert [top["id"] for top in token["top_logprobs"]] == best.tolist()
        assert [top["logprob"] for top in token["top_logprobs"]] == pytest.approx(row[best], abs=1e-9)
    assert "".join(bytes(token["bytes"]).decode() for token in content) == choice["message"]["content"]


@pytest.mark.parametrize("most", [0, 1, 4])
def test_echo_scores_the_prompt(client: TestClient, tiny_path: Path, most: int) -> None:
    """As lm-evaluation-harness asks: token ids, echo, one log-probability; its sums leave out the generated token."""
    ids = [94, *range(3, 60)]
    body = {"prompt": [ids, ids[:5]], "echo": True, "logprobs": 1, "max_tokens": most, "temperature": 0, "seed": 1}
    answer = client.post("/v1/completions", json=body).json()
    rows = log_probabilities(tiny_path, ids)
    for choice, prompt in zip(answer["choices"], (ids, ids[:5]), strict=True):
        scores = choice["logprobs"]
        wanted = [rows[i, id] for i, id in enumerate(prompt[1:])]
        assert scores["token_logprobs"][0] is None
        assert scores["token_logprobs"][1 : len(prompt)] == pytest.approx(wanted, abs=1e-9)
        assert len(scores["tokens"]) == len(prompt) + most
        tops = scores["top_logprobs"][1 : len(prompt)]
        for top, row, logprob in zip(tops, rows, scores["token_logprobs"][1:], strict=False):
            assert max(top.values()) == pytest.approx(row.max(), abs=1e-9)
            assert logprob in top.values()
        assert choice["text"].startswith("".join(scores["tokens"][1 : len(prompt)]))
    assert answer["usage"]["completion_tokens"] == 2 * most


def test_a_long_prompt_is_scored_in_chunks(tiny_path: Path) -> None:
    ids = [94, *(np.arange(150) % 90).tolist()]
    with running(tiny_path, load={**SETTINGS.load, "batch": 48}) as client:
        body = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
        scores = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    rows = log_probabilities(tiny_path, ids)
    wanted = [rows[i, id] for i, id in enumerate(ids[1:])]
    assert scores["token_logprobs"][1:-1] == pytest.approx(wanted, abs=1e-9)


def test_many_at_once_answer_as_alone(client: TestClient) -> None:
    bodies = [
        {"prompt": "ab" * (1 + i % 7) + chr(65 + i), "max_tokens": 5 + i, "temperature": i % 2, "seed": i}
        for i in range(24)
    ]
    alone = [client.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: client.post("/v1/completions", json=body).json(), bodies))
    assert [answer["choices"][0]["text"] for answer in together] == alone


def test_a_prompt_over_the_context_is_refused_with_both_numbers(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"prompt": "a" * 300})
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["n_prompt_tokens"], error["n_ctx"], error["code"]) == (300, CONTEXT, "context_length_exceeded")
    assert "300" in error["message"]
    assert str(CONTEXT) in error["message"]


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": "abc"}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ("chat", {"tools": [{"type": "function"}]}, "tools"),
        ("chat", {"response_format": {"type": "json"}}, "response_format"),
        ("chat", {"chat_template": "x"}, "chat_template"),
        ("chat", {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ("chat", {"top_logprobs": 2}, "top_logprobs"),
        ("chat", {"logprobs": True, "top_logprobs": 101}, "top_logprobs"),
        ("chat", {"n": 0}, "n"),
        ("chat", {"n": 129}, "n"),
        ("chat", {"n": 10**30}, "n"),
        ("chat", {"max_tokens": -2}, "max_tokens"),
        ("chat", {"max_tokens": "5"}, "max_tokens"),
        ("chat", {"temperature": -1}, "temperature"),
        ("chat", {"temperature": "hot"}, "temperature"),
        ("chat", {"top_p": 1.5}, "top_p"),
        ("chat", {"seed": -5}, "seed"),
        ("chat", {"stop": ["x"] * 65}, "stop"),
        ("chat", {"stop": ["x"] * 10_000}, "stop"),
        ("chat", {"stop": "x" * 1001}, "stop"),
        ("chat", {"logit_bias": {"96": 1}}, "logit_bias"),
        ("chat", {"logit_bias": [["a", True]]}, "logit_bias"),
        ("chat", {"samplers": "nonsense"}, "samplers"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": [96]}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": ["a"] * 129}, "prompt"),
        ("completions", {"suffix": "x"}, "suffix"),
        ("completions", {"best_of": 3}, "best_of"),
    ],
)
def test_bad_fields_are_named(client: TestClient, path: str, change: dict[str, Any], param: str) -> None:
    base = CHAT if path == "chat" else {"prompt": "a"}
    response = client.post("/v1/chat/completions" if path == "chat" else "/v1/completions", json={**base, **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_settings_of_the_server_are_defaults(tiny_path: Path) -> None:
    settings = {"temperature": 1.0, "top_k": 5, "seed": 9}
    with running(tiny_path, sampling=settings) as client:
        found = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 12}).json()["choices"][0]["text"]
        greedy = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 12, "temperature": 0}).json()
        assert client.get("/props").json()["default_generation_settings"]["params"]["top_k"] == 5
    assert found == continued(tiny_path, "abc", 12, **settings)[0]
    assert greedy["choices"][0]["text"] == continued(tiny_path, "abc", 12)[0]


def test_a_model_without_a_template(tmp_path: Path) -> None:
    with running(write_tiny(tmp_path / "plain.gguf", template=None)) as client:
        response = client.post("/v1/chat/completions", json=CHAT)
        assert response.status_code == 400
        assert "tokenizer.chat_template is missing" in response.json()["error"]["message"]
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


THINKING = TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}{# </think> #}"


@pytest.mark.parametrize(("format", "splits"), [("auto", True), ("none", False)])
def test_reasoning_comes_apart(tmp_path: Path, format: str, splits: bool) -> None:
    """The begun answer opens the reasoning, and biases make the model go on with its one letter."""
    with running(write_tiny(tmp_path / "thinks.gguf", template=THINKING + "<think>")) as client:
        body = {**CHAT, "max_tokens": 3, "logit_bias": [["Q", 1000]], "reasoning_format": format}
        message = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert message.get("reasoning_content") == ("QQQ" if splits else None)
    assert message["content"] == ("" if splits else "QQQ")


@pytest.mark.extra
def test_lm_evaluation_harness_reads_the_engine_s_likelihoods(client: TestClient, tiny_path: Path) -> None:
    """A request as its local-completions sends it, read by its own parser."""
    pytest.importorskip("lm_eval")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    rows = log_probabilities(tiny_path, ids := [94, *range(3, 30)])
    greedy = [*ids, int(rows[-1].argmax())]
    for tokens, context in ((ids, 20), (greedy, len(ids))):
        body = {"model": "tiny", "prompt": [tokens], "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}
        answer = client.post("/v1/completions", json={**body, "seed": 1234}).json()
        ((found, is_greedy),) = LocalCompletionsAPI.parse_logprobs(answer, tokens=[tokens], ctxlens=[context])
        wanted = [(row[id], row.argmax() == id) for row, id in zip(rows[context - 1 :], tokens[context:], strict=False)]
        assert found == pytest.approx(sum(logprob for logprob, _ in wanted), abs=1e-9)
        assert is_greedy == all(is_best for _, is_best in wanted)
    assert is_greedy
