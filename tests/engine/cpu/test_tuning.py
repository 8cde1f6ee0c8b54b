"""Numbers of threads that a search found: kept by machine and size of the model, used by what loads one."""

import json
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.cpu import tuning
from lltool.engine.cpu.threads import Team, Threads, available_cpus
from lltool.engine.cpu.tuning import Tuned, keep_tuned, read_tuned, tuning_file, tuning_key
from lltool.engine.model import load_model
from lltool.gguf.errors import InputError
from tests.engine import tiny_gguf

MIB = 1 << 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(tuning, "available_cpus", lambda: set(range(8)))


def test_what_is_kept_is_read_for_models_of_about_that_size() -> None:
    assert read_tuned(300 * MIB) is None
    assert keep_tuned(300 * MIB, Tuned(3, 7)) == tuning_file()
    keep_tuned(5000 * MIB, Tuned(1, 2))
    assert read_tuned(300 * MIB) == read_tuned(257 * MIB) == read_tuned(512 * MIB) == Tuned(3, 7)
    assert read_tuned(256 * MIB) is read_tuned(513 * MIB) is None
    assert read_tuned(8192 * MIB) == Tuned(1, 2)
    keep_tuned(400 * MIB, Tuned(4, 4))
    assert read_tuned(300 * MIB) == Tuned(4, 4)


def test_the_machine_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_tuned(MIB, Tuned(3, 7))
    monkeypatch.setattr(tuning, "available_cpus", lambda: set(range(4)))
    assert read_tuned(MIB) is None
    assert "4 processors" in tuning_key(MIB)
    assert tuning_key(MIB).endswith("models to 1 MiB")
    assert tuning_key(100) == tuning_key(MIB)


@pytest.mark.parametrize(
    "kept",
    [{"decode": 0, "batch": 1}, {"decode": 9, "batch": 1}, {"decode": 1}, {"decode": "1", "batch": 1}, [1, 2], 5, None],
)
def test_nonsense_is_not_used(kept: Any) -> None:
    tuning_file().parent.mkdir(parents=True)
    tuning_file().write_text(json.dumps({tuning_key(MIB): kept}))
    assert read_tuned(MIB) is None
    for text in ("[1]", "{", "\udcff"):
        tuning_file().write_text(text, errors="surrogateescape")
        assert read_tuned(MIB) is None
    keep_tuned(MIB, Tuned(2, 2))  # begins anew
    assert read_tuned(MIB) == Tuned(2, 2)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file")
    with pytest.raises(InputError, match=r"threads.json: cannot be written: "):
        keep_tuned(MIB, Tuned(1, 1))


def test_models_are_loaded_with_them_unless_threads_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "available_cpus", available_cpus)
    path = tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())
    found = Tuned(1, len(available_cpus()))
    keep_tuned(path.stat().st_size, found)
    with load_model(path) as model:
        assert model.setup.threads == Threads(Team(1), Team(len(available_cpus()))) == found.threads
    with load_model(path, threads=2) as model:
        assert model.setup.threads == Threads.of(2)
