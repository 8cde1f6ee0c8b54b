"""What tests of conversion share."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.tiny_checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the tiny checkpoint of a family, made once for a module."""
    return cache(lambda family: make_checkpoint(family, tmp_path_factory.mktemp("checkpoint") / family))
