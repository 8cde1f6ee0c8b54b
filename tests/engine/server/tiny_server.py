"""Servers of tiny random models, which answer within milliseconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from lltool.engine.server.app import make_app
from lltool.engine.server.registry import Registry, Source
from lltool.engine.server.settings import ServerSettings
from lltool.gguf.metadata import string
from tests.engine import tiny_gguf

TEMPLATE = "{% for message in messages %}[{{ message.role }}:{{ message.content }}]{% endfor %}>"
CONTEXT = 256
SETTINGS = ServerSettings(parallel=4, load={"context": CONTEXT, "threads": 1, "deterministic": True})


def write_tiny(path: Path, seed: int = 0, *, template: str | None = TEMPLATE) -> Path:
    """A model with a vocabulary of single letters (no space) and, unless it is None, a chat template."""
    keys = {**tiny_gguf.metadata(), **tiny_gguf.vocabulary()}
    if template is not None:
        keys["tokenizer.chat_template"] = string(template)
    return tiny_gguf.write_model(path, keys, tiny_gguf.tensors(seed))


@contextmanager
def running(*paths: Path, names: dict[str, tuple[str, ...]] | None = None, **settings: Any) -> Iterator[TestClient]:
    """A client of a server of these models, without a socket."""
    chosen = replace(SETTINGS, **settings)
    registry = Registry([Source(path, (*(names or {}).get(path.stem, ()), path.stem)) for path in paths], chosen)
    registry.load_now(registry.sources[0])
    with TestClient(
        make_app(registry, chosen), base_url="http://127.0.0.1:8080", raise_server_exceptions=True
    ) as client:
        yield client


def events(text: str) -> list[str]:
    """The data of the server-sent events of a whole stream."""
    return [part.removeprefix("data: ") for part in text.split("\n\n") if part]
