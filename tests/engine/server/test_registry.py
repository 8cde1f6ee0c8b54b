"""Several models: names, loading on demand, who leaves, and what happens to requests meanwhile."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lltool.engine.server.errors import ApiError
from lltool.engine.server.registry import Registry, Source
from tests.engine.server.tiny_server import SETTINGS, running, write_tiny

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_tiny(folder / f"{name}.gguf", seed) for seed, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def alone(paths: list[Path]) -> dict[str, str]:
    """What each model answers when it is the only one."""
    found = {}
    for path in paths:
        with running(path) as client:
            found[path.stem] = ask(client, path.stem)
    assert len(set(found.values())) == len(NAMES)
    return found


def ask(client: TestClient, model: str) -> str:
    body = {"model": model, "prompt": "abc", "max_tokens": 8, "temperature": 0}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model
    return str(response.json()["choices"][0]["text"])


def loaded(client: TestClient) -> list[str]:
    data = client.get("/v1/models").json()["data"]
    return [model["id"] for model in data if model["status"]["value"] == "loaded"]


def test_models_are_found_by_name_and_alias(paths: list[Path], alone: dict[str, str]) -> None:
    with running(*paths, names={"two": ("chat", "small")}) as client:
        body = {"model": "small", "prompt": "abc", "max_tokens": 8, "temperature": 0}
        answer = client.post("/v1/completions", json=body).json()
        assert (answer["model"], answer["choices"][0]["text"]) == ("chat", alone["two"])
        unknown = client.post("/v1/completions", json={**body, "model": "four"})
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "model_not_found"
        assert client.post("/v1/completions", json={**body, "model": None}).json()["model"] == "one"


def test_the_least_recently_used_leaves(paths: list[Path], alone: dict[str, str]) -> None:
    with running(*paths, models_max=2) as client:
        assert loaded(client) == ["one"]
        assert ask(client, "two") == alone["two"]
        assert ask(client, "one") == alone["one"]
        assert ask(client, "three") == alone["three"]
        assert loaded(client) == ["one", "three"]


def test_requests_of_all_models_at_once_are_answered(paths: list[Path], alone: dict[str, str]) -> None:
    with running(*paths, models_max=1) as client, ThreadPoolExecutor(6) as pool:
        asked = [NAMES[i % 3] for i in range(18)]
        assert list(pool.map(lambda name: ask(client, name), asked)) == [alone[name] for name in asked]


def test_load_and_unload_on_request(paths: list[Path]) -> None:
    with running(*paths) as client:
        assert client.post("/models/load", json={"model": "three"}).json() == {"success": True}
        assert loaded(client) == ["one", "three"]
        assert client.post("/models/unload", json={"model": "one"}).json() == {"success": True}
        assert client.post("/models/unload", json={"model": "one"}).json() == {"success": True}
        assert loaded(client) == ["three"]
        assert client.post("/models/unload", json={"model": "../one"}).status_code == 404


def test_a_budget_of_memory(paths: list[Path], alone: dict[str, str]) -> None:
    need = Registry([], SETTINGS)._need(Source(paths[0], ("one",)))
    with running(*paths, memory_budget=int(2.5 * need)) as client:
        for name in NAMES:
            assert ask(client, name) == alone[name]
        assert loaded(client) == ["two", "three"]
    with running(*paths, memory_budget=need - 1) as client:
        client.post("/models/unload", json={"model": "one"})
        refused = client.post("/v1/completions", json={"model": "two", "prompt": "a"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_too_large"


def test_a_broken_file_is_an_error_without_its_folder(paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with running(paths[0], broken) as client:
        refused = client.post("/v1/completions", json={"model": "broken", "prompt": "a"})
        assert refused.status_code == 500
        assert str(tmp_path) not in refused.text
        assert ask(client, "one")


@pytest.fixture
def registry(paths: list[Path]) -> Iterator[Registry]:
    registry = Registry([Source(path, (path.stem,)) for path in paths], replace(SETTINGS, models_max=1))
    yield registry
    registry.close()


def within(seconds: float, scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, seconds))


async def until_leaving(registry: Registry, name: str) -> None:
    while not registry._loaded[name].leaving:
        await asyncio.sleep(0.001)


def test_a_model_in_use_stays_until_it_is_released(registry: Registry) -> None:
    async def scenario() -> None:
        one = await registry.acquire("one")
        other = asyncio.create_task(registry.acquire("two"))
        await until_leaving(registry, "one")
        again = asyncio.create_task(registry.acquire("one"))  # comes after "two", so that this one gets its turn
        await asyncio.sleep(0)
        assert not other.done()
        assert registry.loaded == [one]
        registry.release(one)
        two = await other
        assert [served.name for served in registry.loaded] == ["two"]
        assert not again.done()
        registry.release(two)
        assert (await again).name == "one"

    within(60, scenario())


def test_who_gives_up_waiting_leaves_the_model(registry: Registry) -> None:
    async def scenario() -> None:
        one = await registry.acquire("one")
        other = asyncio.create_task(registry.acquire("two"))
        await until_leaving(registry, "one")
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        assert await registry.acquire("one") is one

    within(60, scenario())


def test_an_idle_model_is_unloaded(paths: list[Path]) -> None:
    async def scenario() -> None:
        registry = Registry([Source(paths[0], ("one",))], replace(SETTINGS, idle_seconds=0.01))
        one = await registry.acquire("one")
        await asyncio.sleep(0.05)
        assert registry.loaded == [one]  # it is in use
        registry.release(one)
        while registry.loaded:
            await asyncio.sleep(0.01)
        again = await registry.acquire("one")
        assert again is not one
        registry.close()

    within(60, scenario())


def test_unknown_names_are_404(registry: Registry) -> None:
    with pytest.raises(ApiError, match="no model 'four'; there are one, two, three"):
        registry.find("four")
