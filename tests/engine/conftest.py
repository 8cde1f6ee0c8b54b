"""What tests of the engine share: tiny models of several kinds, made when they are first asked for."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from lltool.quant.convert.conversion import convert
from tests.engine.server.tiny_server import write_tiny
from tests.tiny_checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the path of a model by its kind: "windows", which has sliding windows, or a kind of checkpoint."""

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        if kind == "windows":
            return write_tiny(folder / "model.gguf")
        return convert(make_checkpoint(kind, folder / "checkpoint"), folder / "model.gguf", "f32")

    return make
