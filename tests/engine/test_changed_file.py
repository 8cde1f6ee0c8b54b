"""Models whose file is cut off or written to while they are in use."""

import os
from pathlib import Path

import pytest

from lltool.engine.model import load_model
from lltool.gguf.errors import FileChanged
from tests.engine import tiny_gguf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_gguf.write_model(tmp_path / "x.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())


@pytest.mark.parametrize("change", ["cut", "overwritten"])
def test_a_model_whose_file_changes_gives_no_more_logits(path: Path, change: str) -> None:
    model = load_model(path, threads=2)
    sequence = model.new_sequence()
    model.evaluate(sequence, [1, 2, 3])
    if change == "cut":
        os.truncate(path, 4096)
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(FileChanged, match=f"{path}: changed while it was read"):
        model.evaluate(sequence, [4])
    with pytest.raises(FileChanged), model:
        pass


def test_a_model_in_memory_does_not_need_its_file(path: Path) -> None:
    with load_model(path, threads=1, load_mode="none") as model:
        os.truncate(path, 0)
        assert len(model.evaluate(model.new_sequence(), [1, 2, 3])) == tiny_gguf.VOCAB


def test_whatever_an_error_says_a_changed_file_is_its_cause(path: Path) -> None:
    def read_nonsense() -> None:
        with load_model(path, threads=1):
            os.truncate(path, 0)
            raise ValueError("nonsense was read")

    with pytest.raises(FileChanged) as caught:
        read_nonsense()
    assert isinstance(caught.value.__context__, ValueError)
