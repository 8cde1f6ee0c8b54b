"""Encoders and rerankers behind the server: what it answers is what the engine gives in this process."""

import base64
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from lltool.engine.embed import embed
from lltool.engine.model import load_model
from lltool.engine.rank import encode_text, rank
from lltool.gguf.metadata import u32
from lltool.quant.convert.conversion import convert
from tests.encoder_checkpoints import ENCODERS, RERANKERS, make_encoder
from tests.engine import tiny_gguf
from tests.engine.server.tiny_server import running, write_tiny

TEXTS = ["the old man went to the sea", "你好 мир", "Grüße 🚀 from the sea, again and again"]
QUERY = "who went to the sea?"
LOAD: dict[str, Any] = {"threads": 1, "deterministic": True}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder, a reranker, a model that generates, and a decoder whose file says how texts are pooled."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {"encoder": ENCODERS["bert"], "reranker": RERANKERS["bert"]}
    made = {name: convert(make_encoder(kind, folder / name), folder / f"{name}.gguf", "f32")
            for name, kind in kinds.items()}  # fmt: skip
    made["writer"] = write_tiny(folder / "writer.gguf")
    keys = {**tiny_gguf.metadata(pooling_type=u32(3)), **tiny_gguf.vocabulary()}
    made["last"] = tiny_gguf.write_model(folder / "last.gguf", keys, tiny_gguf.tensors())
    return made


@pytest.fixture(scope="module")
def client(paths: dict[str, Path]) -> Iterator[TestClient]:
    """A server of all four, each loaded when it is asked for."""
    with running(*paths.values(), load=LOAD) as client:
        yield client


def vectors(path: Path, texts: list[str], **options: Any) -> NDArray[np.float32]:
    with load_model(path, output="pooled", **LOAD) as model:
        return embed(model, [encode_text(model, text) for text in texts], **options)


def scores(path: Path, **options: Any) -> NDArray[np.float64]:
    with load_model(path, output="pooled", **LOAD) as model:
        return rank(model, QUERY, TEXTS, **options)


def test_vectors_of_an_encoder(client: TestClient, paths: dict[str, Path]) -> None:
    wanted = vectors(paths["encoder"], TEXTS)
    body = {"model": "encoder", "input": TEXTS}
    answer = client.post("/v1/embeddings", json=body).json()
    found = np.array([row["embedding"] for row in answer["data"]], np.float32)
    np.testing.assert_array_equal(found, wanted)
    with load_model(paths["encoder"], output="pooled") as model:
        ids = [encode_text(model, text) for text in TEXTS]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
    coded = client.post("/v1/embeddings", json={**body, "input": ids, "encoding_format": "base64"}).json()
    decoded = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in coded["data"]]
    np.testing.assert_array_equal(decoded, wanted)
    ollama = client.post("/api/embed", json=body).json()
    np.testing.assert_array_equal(np.array(ollama["embeddings"], np.float32), wanted)
    single = client.post("/api/embeddings", json={"model": "encoder", "prompt": TEXTS[0]}).json()
    np.testing.assert_array_equal(np.array(single["embedding"], np.float32), wanted[0])


def test_shorter_vectors_have_length_one(client: TestClient, paths: dict[str, Path]) -> None:
    wanted = vectors(paths["encoder"], TEXTS)[:, :32]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    body = {"model": "encoder", "input": TEXTS}
    answer = client.post("/v1/embeddings", json={**body, "dimensions": 32}).json()
    np.testing.assert_allclose([row["embedding"] for row in answer["data"]], wanted, atol=1e-6)
    refused = client.post("/v1/embeddings", json={**body, "dimensions": 97})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "dimensions: 97, but the model's vectors have 96 numbers"


@pytest.mark.parametrize("norm", [-1, 0, 1, 2, 3])
def test_llama_servers_vectors(client: TestClient, paths: dict[str, Path], norm: int) -> None:
    plain = vectors(paths["encoder"], TEXTS, normalize=False).astype(np.float64)
    divisors = np.ones(len(TEXTS)) if norm < 0 else np.abs(plain).max(axis=1) / 32760
    if norm > 0:
        divisors = (np.abs(plain) ** norm).sum(axis=1) ** (1 / norm)
    answer = client.post("/embedding", json={"model": "encoder", "content": TEXTS, "embd_normalize": norm}).json()
    assert [each["index"] for each in answer] == [0, 1, 2]
    found = np.array([each["embedding"][0] for each in answer])
    np.testing.assert_allclose(found, plain / divisors[:, None], rtol=1e-5, atol=1e-6)
    openai = client.post("/embeddings", json={"model": "encoder", "input": TEXTS[0]}).json()
    np.testing.assert_array_equal(
        np.array(openai["data"][0]["embedding"], np.float32), vectors(paths["encoder"], TEXTS[:1])[0]
    )


def test_a_decoder_that_was_made_for_vectors(client: TestClient, paths: dict[str, Path]) -> None:
    answer = client.post("/v1/embeddings", json={"model": "last", "input": ["abc", "xyz"]}).json()
    wanted = vectors(paths["last"], ["abc", "xyz"])
    np.testing.assert_array_equal(np.array([row["embedding"] for row in answer["data"]], np.float32), wanted)
    shown = {name: client.post("/api/show", json={"model": name}).json()["capabilities"] for name in paths}
    assert shown == {"encoder": ["embedding"], "reranker": [], "writer": ["completion"], "last": ["embedding"]}


def test_documents_are_sorted(client: TestClient, paths: dict[str, Path]) -> None:
    raw = scores(paths["reranker"])
    order = np.argsort(-raw).tolist()
    body = {"model": "reranker", "query": QUERY, "documents": [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]}
    answer = client.post("/v1/rerank", json={**body, "return_documents": True}).json()
    assert [each["index"] for each in answer["results"]] == order
    assert [each["document"]["text"] for each in answer["results"]] == [TEXTS[index] for index in order]
    found = [each["relevance_score"] for each in answer["results"]]
    assert found == pytest.approx([1 / (1 + math.exp(-raw[index])) for index in order])
    assert answer["usage"]["total_tokens"] > 0
    best = client.post("/v1/reranking", json={**body, "top_n": 1, "raw_scores": True}).json()["results"]
    assert best == [{"index": order[0], "relevance_score": raw[order[0]]}]
    tei = client.post("/rerank", json={"model": "reranker", "query": QUERY, "texts": TEXTS, "return_text": True}).json()
    assert [(each["index"], each["text"]) for each in tei] == [(index, TEXTS[index]) for index in order]


def test_scores_of_pairs(client: TestClient, paths: dict[str, Path]) -> None:
    body = {"model": "reranker", "text_1": QUERY, "text_2": TEXTS}
    answer = client.post("/v1/score", json=body).json()
    assert [each["score"] for each in answer["data"]] == pytest.approx(scores(paths["reranker"], probabilities=True))
    several = client.post("/v1/score", json={**body, "text_1": [QUERY] * 3}).json()
    assert several["data"] == answer["data"]
    for wrong in ({"text_1": [QUERY] * 2}, {"text_1": [], "text_2": []}, {"text_1": []}, {"text_2": []}):
        assert client.post("/v1/score", json={**body, **wrong}).status_code == 400
    rows = vectors(paths["encoder"], [QUERY, *TEXTS])
    cosines = client.post("/v1/score", json={**body, "model": "encoder"}).json()
    assert [each["score"] for each in cosines["data"]] == pytest.approx(rows[1:] @ rows[0], abs=1e-6)


ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    "completion": ("/v1/completions", {"prompt": "a"}),
    "completion of ids": ("/completion", {"prompt": [1, 2]}),
    "infill": ("/infill", {"input_prefix": "a"}),
    "ollama": ("/api/generate", {"prompt": "a"}),
    "vectors": ("/v1/embeddings", {"input": "a"}),
    "documents": ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    "pairs": ("/v1/score", {"text_1": "a", "text_2": "b"}),
}
ENCODER, RERANKER = "encoder is an embedding model, for /v1/embeddings", "reranker is a reranker, for /v1/rerank"
WRITER, LAST = "writer is a model that generates text", "last is an embedding model, for /v1/embeddings"


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        *((name, asked, f"{what}; it makes no texts")
          for name, what in (("encoder", ENCODER), ("reranker", RERANKER), ("last", LAST))
          for asked in ("chat", "completion", "completion of ids", "infill", "ollama")),
        ("encoder", "documents", f"{ENCODER}; it makes no scores"),
        ("writer", "documents", f"{WRITER}; it makes no scores"),
        ("writer", "pairs", f"{WRITER}; it makes no scores"),
        ("reranker", "vectors", f"{RERANKER}; it makes no vectors"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_do_is_400(client: TestClient, model: str, asked: str, message: str) -> None:
    path, body = ASKED[asked]
    answer = client.post(path, json={**body, "model": model})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error if isinstance(error, str) else error["message"]) == message


def test_long_texts_are_refused_or_cut(client: TestClient, paths: dict[str, Path]) -> None:
    text = "sea " * 400  # the encoder's context is 320 tokens
    body: dict[str, Any] = {"model": "encoder", "input": [TEXTS[0], text]}
    refused = client.post("/v1/embeddings", json=body)
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message.startswith("input.1: ")
    assert " do not fit the context of 320" in message
    cut = client.post("/v1/embeddings", json={**body, "truncate": True}).json()["data"][1]["embedding"]
    with load_model(paths["encoder"], output="pooled", **LOAD) as model:
        wanted = embed(model, [encode_text(model, text, truncate=True)])
    np.testing.assert_array_equal(np.array(cut, np.float32), wanted[0])
    huge = client.post("/v1/embeddings", json={"model": "encoder", "input": "sea " * 200_000})
    assert huge.status_code == 400
    assert huge.json()["error"]["n_ctx"] == 320
    for bad in ([], "", [TEXTS[0], " "], [[1], []], [10**6]):
        assert client.post("/v1/embeddings", json={"model": "encoder", "input": bad}).status_code == 400
    asked = {"model": "reranker", "query": QUERY, "documents": [TEXTS[0], text]}
    assert "documents.1" in client.post("/v1/rerank", json=asked).json()["error"]["message"]
    assert client.post("/v1/rerank", json={**asked, "truncate": True}).status_code == 200
    for bad_body in ({"query": QUERY}, {"query": QUERY, "documents": []}, {"query": " ", "documents": ["a"]}):
        assert client.post("/v1/rerank", json={"model": "reranker", **bad_body}).status_code == 400


def test_many_requests_at_once(client: TestClient, paths: dict[str, Path]) -> None:
    """Texts of all requests share batches, and each request gets its own rows."""
    texts = [f"{TEXTS[number % 3]} {number}" for number in range(40)]
    wanted = vectors(paths["encoder"], texts)

    def ask(start: int) -> NDArray[np.float32]:
        body = {"model": "encoder", "input": texts[start : start + 5]}
        data = client.post("/v1/embeddings", json=body).json()["data"]
        return np.array([row["embedding"] for row in data], np.float32)

    with ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(np.concatenate(list(pool.map(ask, range(0, 40, 5)))), wanted)


def test_damaged_weights_are_said(tmp_path: Path) -> None:
    keys = {**tiny_gguf.metadata(pooling_type=u32(3)), **tiny_gguf.vocabulary()}
    weights = tiny_gguf.tensors()
    weights["output_norm.weight"][0] = np.nan
    with running(tiny_gguf.write_model(tmp_path / "damaged.gguf", keys, weights)) as client:
        answer = client.post("/v1/embeddings", json={"input": "abc"})
    assert answer.status_code == 500
    assert "damaged gives numbers that are not finite" in answer.text


def test_a_chat_model_and_an_embedding_model(client: TestClient, paths: dict[str, Path]) -> None:
    chat = client.post("/v1/completions", json={"model": "writer", "prompt": "abc", "max_tokens": 3})
    assert chat.status_code == 200
    assert json.loads(chat.text)["usage"]["completion_tokens"] == 3
    assert client.post("/v1/embeddings", json={"model": "encoder", "input": "abc"}).status_code == 200
    loaded = [each["id"] for each in client.get("/v1/models").json()["data"] if each["status"]["value"] == "loaded"]
    assert {"writer", "encoder"} <= set(loaded)


def test_tokens_are_counted(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    name = 'lltool_prompt_tokens_total{model="reranker"} '

    def counted() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = counted()
    with caplog.at_level("INFO", "lltool.server"):
        body = {"model": "reranker", "query": QUERY, "documents": TEXTS}
        tokens = client.post("/v1/rerank", json=body).json()["usage"]["total_tokens"]
    assert counted() - before == tokens > 0
    assert f"model=reranker prompt={tokens}" in caplog.text
