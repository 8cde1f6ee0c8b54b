"""LoRA adapters of the server: scales for all requests and for one."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lltool.engine.model import load_model
from tests.engine.server.tiny_server import SETTINGS, running, write_tiny
from tests.engine.tiny_adapters import factors, write_adapter

PROMPT = list(range(20))
REQUEST: dict[str, Any] = {"prompt": PROMPT, "n_predict": 8, "temperature": 0, "return_tokens": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = [write_adapter(folder / f"{seed}.gguf", factors(seed=seed)) for seed in (1, 2)]
    return write_tiny(folder / "model.gguf"), adapters


def alone(files: tuple[Path, list[Path]], scales: list[float]) -> list[int]:
    """What the model with these adapters continues the prompt with."""
    lora = list(zip(files[1], scales, strict=True))
    with load_model(files[0], lora=lora, **SETTINGS.load) as model:
        sequence, ids, found = model.new_sequence(), PROMPT, list[int]()
        for _ in range(8):
            ids = [int(model.evaluate(sequence, ids).argmax())]
            found += ids
    return found


def tokens_of(client: TestClient, **changes: Any) -> list[int]:
    answer = client.post("/completion", json=REQUEST | changes)
    assert answer.status_code == 200, answer.text
    tokens: list[int] = answer.json()["tokens"]
    return tokens


def test_scales_of_the_server_and_of_a_request(files: tuple[Path, list[Path]]) -> None:
    """The prefix that requests share is in the cache with the scales of each."""
    lora = [(path, 1.0) for path in files[1]]
    with running(files[0], load=SETTINGS.load | {"lora": lora}) as client:
        wanted = {scales: alone(files, list(scales)) for scales in ((1.0, 1.0), (0.0, 0.0), (0.0, 2.0), (0.5, 0.0))}
        assert len({tuple(tokens) for tokens in wanted.values()}) == 4
        shown = client.get("/lora-adapters").json()
        assert [(each["id"], each["path"], each["rank"], each["scale"]) for each in shown] == [
            (0, "1.gguf", 4, 1.0),
            (1, "2.gguf", 4, 1.0),
        ]
        assert tokens_of(client) == wanted[1.0, 1.0]
        assert tokens_of(client, lora=[]) == wanted[0.0, 0.0]
        assert tokens_of(client, lora=[{"id": 1, "scale": 2}]) == wanted[0.0, 2.0]
        assert client.post("/lora-adapters", json=[{"id": 0, "scale": 0.5}]).json() == {"success": True}
        assert [each["scale"] for each in client.get("/lora-adapters").json()] == [0.5, 0.0]
        assert tokens_of(client) == wanted[0.5, 0.0]
        chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "lora": [{"id": 0, "scale": 0.0}]}
        assert client.post("/v1/chat/completions", json=chat).status_code == 200


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ([{"id": 2, "scale": 1.0}], "lora: id 2, and this model has the ids from 0 to 1"),
        ([{"id": 0, "scale": 1.0}, {"id": 0, "scale": 2.0}], "lora: an id appears twice"),
        ([{"id": 0}], "lora.0.scale: Field required"),
        ([{"id": 0, "scale": "1"}], "lora.0.scale: Input should be a valid number"),
        ({"id": 0, "scale": 1}, "lora: Input should be a valid list"),
    ],
)
def test_a_bad_choice_of_adapters_is_refused(lora: Any, message: str, files: tuple[Path, list[Path]]) -> None:
    with running(files[0], load=SETTINGS.load | {"lora": [(path, 1.0) for path in files[1]]}) as client:
        answer = client.post("/completion", json=REQUEST | {"lora": lora})
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_a_model_without_adapters(files: tuple[Path, list[Path]]) -> None:
    with running(files[0]) as client:
        assert client.get("/lora-adapters").json() == []
        answer = client.post("/completion", json=REQUEST | {"lora": [{"id": 0, "scale": 1.0}]})
        assert answer.json()["error"]["message"] == "lora: id 0, and this model has no adapters"
        answer = client.post("/lora-adapters", json={"id": 0})
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the body is no JSON list")
