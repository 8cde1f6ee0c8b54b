"""What stands around the endpoints: bad bodies, keys, hosts, origins, full queues, clients that go, and the log."""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from lltool.engine.server.app import make_app
from lltool.engine.server.registry import Registry, Source
from lltool.engine.server.settings import RequestLimits
from tests.engine.server.tiny_server import SETTINGS, running

CHAT = "/v1/chat/completions"
PROMPT = {"prompt": "abc", "max_tokens": 5, "temperature": 0}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"prompt": "\xff"}', "invalid_json"),
        (b'{"prompt": NaN}', "invalid_json"),
        (b'{"prompt": "a", "temperature": 1e999}', None),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 100_000, "invalid_json"),
        (b"{}", None),
    ],
)
def test_bad_bodies_are_400(client: TestClient, body: bytes, code: str | None) -> None:
    response = client.post("/v1/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == code


def test_lone_surrogates_come_back(client: TestClient) -> None:
    response = client.post("/apply-template", content=b'{"messages": [{"role": "user", "content": "a\\ud800"}]}')
    assert json.loads(response.content)["prompt"] == "[user:a\ud800]>"
    assert client.post("/v1/completions", content=b'{"prompt": "a\\ud800", "max_tokens": 1}').status_code == 200


def test_a_body_over_the_limit_is_413(tiny_path: Path) -> None:
    with running(tiny_path, limits=RequestLimits(body_bytes=1000)) as client:
        assert client.post("/v1/completions", json={**PROMPT, "prompt": "a" * 900}).status_code == 400
        response = client.post("/v1/completions", json={**PROMPT, "prompt": "a" * 1000})
    assert response.status_code == 413
    assert "1000" in response.json()["error"]["message"]


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token has at most four bytes (of </s>), so that 200,000 bytes are at least 12,500 tokens."""

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("encoded")

    with running(tiny_path) as client:
        monkeypatch.setattr("lltool.engine.text.tokenizer.Tokenizer.encode", refuse)
        response = client.post("/v1/completions", json={**PROMPT, "prompt": "a" * 200_000})
    assert response.status_code == 400
    assert response.json()["error"]["n_prompt_tokens"] == 12_500
    assert "at least 12500 tokens and the context 256" in response.json()["error"]["message"]


def test_unknown_paths_and_methods(client: TestClient) -> None:
    for response, status in ((client.get("/nothing"), 404), (client.get(CHAT), 405)):
        assert response.status_code == status
        assert response.json()["error"]["type"] in ("not_found_error", "invalid_request_error")


def test_tokens_and_templates(client: TestClient) -> None:
    ids = client.post("/tokenize", json={"content": "abc</s>"}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": ids}).json() == {"content": "abc</s>"}
    pieces = client.post("/tokenize", json={"content": "ab", "with_pieces": True}).json()["tokens"]
    assert pieces == [{"id": ids[0], "piece": "a"}, {"id": ids[1], "piece": "b"}]
    plain = client.post("/tokenize", json={"content": "</s>", "parse_special": False}).json()["tokens"]
    assert len(plain) == 4
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}
    assert client.post("/apply-template", json=body).json() == {"prompt": "[user:a\nb]>"}
    assert client.post("/detokenize", json={"tokens": [96]}).status_code == 400


def test_props_and_models(client: TestClient) -> None:
    props = client.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 256
    assert props["default_generation_settings"]["params"]["top_k"] == 40
    assert props["eos_token"] == "</s>"
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["meta"]["n_vocab"], model["meta"]["n_ctx_train"]) == ("tiny", 96, 512)
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/v1/models/other").status_code == 404


def test_keys(tiny_path: Path) -> None:
    with running(tiny_path, api_keys=["first", "sécond"]) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": "Basic first"}, {"X-Api-Key": ""}):
            response = client.post("/v1/completions", json=PROMPT, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        for good in ({"Authorization": "Bearer first"}, {"X-Api-Key": "first"}):
            assert client.post("/v1/completions", json=PROMPT, headers=good).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8080", 200),
        ("rebound.example", 403),
        ("127.0.0.1.rebound.example:8080", 403),
        ("[bad", 403),
        ("", 403),
    ],
)
def test_only_loopback_s_own_names_are_hosts(client: TestClient, host: str, status: int) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == status


def test_origins(client: TestClient, tiny_path: Path) -> None:
    page = {"Origin": "https://page.example"}
    assert client.post("/v1/completions", json=PROMPT, headers=page).status_code == 403
    own = client.post("/v1/completions", json=PROMPT, headers={"Origin": "http://127.0.0.1:8080"})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers
    with running(tiny_path, cors_origins=["https://page.example"], api_keys=["key"]) as other:
        ask = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = other.options(CHAT, headers=ask)
        assert preflight.headers["access-control-allow-origin"] == "https://page.example"
        answer = other.post("/v1/completions", json=PROMPT, headers={**page, "Authorization": "Bearer key"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://page.example")
        assert other.post("/v1/completions", json=PROMPT, headers={"Origin": "https://b.example"}).status_code == 403


def test_allowed_hosts(tiny_path: Path) -> None:
    with running(tiny_path, host="0.0.0.0", allowed_hosts=["models.example"]) as client:
        assert client.get("/health", headers={"Host": "models.example"}).status_code == 200
        assert client.get("/health", headers={"Host": "other.example"}).status_code == 403
    with running(tiny_path, host="0.0.0.0") as client:
        assert client.get("/health", headers={"Host": "other.example"}).status_code == 200


class Caller:
    """A client that speaks ASGI, so that a test says when it goes."""

    def __init__(self, path: str, body: Any) -> None:
        self.scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080),
        }  # fmt: skip
        self.sent: list[Message] = []
        self.first = asyncio.Event()  # a part of the answer has come
        self.gone = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and b"content" in message["body"]:
            self.first.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


LONG = {"prompt": "abc", "max_tokens": 250, "temperature": 1, "seed": 1, "ignore_eos": True}


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_ends_its_request(tiny_path: Path, streams: bool) -> None:
    async def scenario() -> None:
        registry = Registry([Source(tiny_path, ("tiny",))], SETTINGS)
        runner = registry.load_now(registry.sources[0]).runner
        app = make_app(registry, SETTINGS)
        try:
            messages = [{"role": "user", "content": "a"}]
            caller = Caller(CHAT, {**LONG, "messages": messages, "stream": streams})
            with runner.model.turn():  # the engine waits, so that the request cannot be over before the client goes
                answering = asyncio.create_task(app(caller.scope, caller.receive, caller.send))
                while not runner.jobs:
                    await asyncio.sleep(0)
                (job,) = runner.jobs
                if streams:
                    await caller.first.wait()
                caller.gone.set()
                await answering
            while runner.jobs:
                await asyncio.sleep(0)
            assert job.reason == "cancelled"
            assert job.timings.tokens <= 1  # that of the step that had begun
        finally:
            registry.close()

    asyncio.run(asyncio.wait_for(scenario(), 100))


def test_a_full_queue_is_503(tiny_path: Path) -> None:
    async def scenario() -> None:
        settings = replace(SETTINGS, parallel=1, queue=1)
        registry = Registry([Source(tiny_path, ("tiny",))], settings)
        runner = registry.load_now(registry.sources[0]).runner
        app = make_app(registry, settings)
        try:
            with runner.model.turn():  # nothing can run, so that the queue stays as it is
                callers = [Caller("/v1/completions", LONG) for _ in range(2)]
                running = [asyncio.create_task(app(each.scope, each.receive, each.send)) for each in callers]
                while len(runner.jobs) < 2:
                    await asyncio.sleep(0)
                refused = Caller("/v1/completions", LONG)
                await app(refused.scope, refused.receive, refused.send)
            assert refused.status == 503
            assert dict(refused.sent[0]["headers"])[b"retry-after"] == b"1"
            await asyncio.gather(*running)
            assert [each.status for each in callers] == [200, 200]
        finally:
            registry.close()

    asyncio.run(asyncio.wait_for(scenario(), 100))


def test_the_time_of_a_request_has_an_end(tiny_path: Path) -> None:
    with running(tiny_path, limits=RequestLimits(seconds=0)) as client:
        answer = client.post("/v1/completions", json=LONG).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] < 250


def test_the_log_has_counts_and_no_text(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lltool.server"):
        response = client.post("/v1/completions", json={**PROMPT, "prompt": "SECRETWORD", "stop": "OTHERSECRET"})
    (record,) = [record.getMessage() for record in caplog.records if record.name == "lltool.server"]
    fields = dict(part.split("=", 1) for part in record.split(" "))
    assert fields["id"] == response.headers["x-request-id"]
    assert (fields["path"], fields["status"], fields["model"]) == ("/v1/completions", "200", "tiny")
    assert (fields["prompt"], fields["generated"], fields["reason"]) == ("10", "5", "length")
    assert "SECRET" not in record
    assert response.json()["choices"][0]["text"] not in record


def test_the_page_is_served_without_a_key(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<title>page</title>")
    (tmp_path / "assets" / "app.js").write_text("1")
    with running(tiny_path, page=tmp_path, api_keys=["key"]) as client:
        assert client.get("/").text == "<title>page</title>"
        assert client.get("/assets/app.js").status_code == 200
        assert client.get("/assets/../../secret").status_code in (401, 404)
        assert client.get("/props").status_code == 401
