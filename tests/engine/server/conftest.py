"""A server that the tests of a module share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.engine.server.tiny_server import running, write_tiny


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("server") / "tiny.gguf")


@pytest.fixture(scope="module")
def client(tiny_path: Path) -> Iterator[TestClient]:
    with running(tiny_path) as client:
        yield client
