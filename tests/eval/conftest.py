"""What tests of pictures share."""

from pathlib import Path
from typing import Any

import pytest

from lltool.eval.common import figure as module


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved, in order."""
    found: list[Any] = []
    save = module._save

    def record(figure: Any, target: Path) -> None:
        save(figure, target)
        found.append(figure)

    monkeypatch.setattr(module, "_save", record)
    return found
