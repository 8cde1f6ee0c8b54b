"""What tests of several folders share: where the golden data and the real models are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.sample_models import fetch_sample

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data beside the repository; tests that need it are skipped without."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs the golden data in {folder}")
    return folder


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """Gives the path of a sample model by name, downloading it the first time."""

    def fetch(name: str) -> Path:
        try:
            return fetch_sample(name, REPOSITORY / ".cache" / "models")
        except InputError as error:
            pytest.skip(f"needs a sample model: {error}")

    return fetch
