"""Results are made once; a result with a changed recipe, an incomplete or a missing result is made again."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lltool.eval.common.store import Store
from lltool.gguf.errors import InputError


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def file(self, path: Path) -> None:
        self.calls += 1
        assert not path.exists()
        path.write_text(f"made {self.calls}")

    def folder(self, path: Path) -> None:
        self.calls += 1
        path.mkdir()
        (path / "a").write_text("a")
        (path / "b").write_text("b")


def test_same_recipe_is_made_once(tmp_path: Path) -> None:
    store, maker = Store(tmp_path / "new", {}), Maker()
    for _ in range(3):
        assert store.make("x", {"n": (1, 2)}, maker.file).read_text() == "made 1"
    assert store.make("x", {"n": (1, 3)}, maker.file).read_text() == "made 2"
    assert store.make("y", {"n": (1, 3)}, maker.file).read_text() == "made 3"


def test_a_result_that_lacks_a_file_is_made_again(tmp_path: Path) -> None:
    store, maker = Store(tmp_path, {"source": 1}), Maker()
    (store.make("x", {}, maker.folder) / "b").unlink()
    store.make("x", {}, maker.folder)
    assert maker.calls == 2
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "b").write_text("longer"),
        lambda path: os.utime(path / "b", ns=(1, 1)),
        lambda path: (path / "c").write_text("new"),
    ],
)
def test_a_changed_result_is_not_replaced(tmp_path: Path, change: Callable[[Path], object]) -> None:
    store, maker = Store(tmp_path, {"source": 1}), Maker()
    change(store.make("x", {}, maker.folder))
    before = {path.name: path.read_text() for path in (tmp_path / "x").iterdir()}
    for recipe in ({}, {"n": 1}):
        with pytest.raises(InputError, match="x: has changed since lltool made it"):
            store.make("x", recipe, maker.folder)
    assert {path.name: path.read_text() for path in (tmp_path / "x").iterdir()} == before


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_files_of_the_user_are_not_replaced(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "x"
    if kind == "file":
        mine.write_text("mine")
    elif kind == "folder":
        mine.mkdir()
    else:
        mine.symlink_to("elsewhere")
    with pytest.raises(InputError, match="x: exists, and lltool did not make it"):
        Store(tmp_path, {}).make_all({"a": {}, "x": {}}, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_record_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    (tmp_path / ".x.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"\.x\.json: not a record of lltool"):
        Store(tmp_path, {}).make("x", {}, Maker().file)


def test_an_interrupted_result_is_made_again(tmp_path: Path) -> None:
    store, maker = Store(tmp_path, {"source": 1}), Maker()

    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.make("x", {}, interrupted)
    assert store.make("x", {}, maker.file).read_text() == "made 1"


def test_half_written_data_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_disk(self: Path, text: str, **_: object) -> None:
        self.write_bytes(text.encode()[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_disk)
    with pytest.raises(InputError, match=r"v\.json: the disk is full"):
        Store(tmp_path, {}).compute("v.json", {}, lambda: [1, 2, 3])
    assert list(tmp_path.iterdir()) == []


def test_another_base_makes_everything_again(tmp_path: Path) -> None:
    maker = Maker()
    for base in ({"source": 1}, {"source": 2}, {"source": 2}):
        Store(tmp_path, base).make("x", {}, maker.file)
    assert maker.calls == 2


def test_plain_data_comes_back(tmp_path: Path) -> None:
    values = iter([{"a": [1, 2.5, "ä"]}])
    store = Store(tmp_path, {"source": 1})
    assert store.compute("v.json", {}, lambda: next(values)) == store.compute("v.json", {}, lambda: next(values))


def test_missing_results_are_made_by_one_call(tmp_path: Path) -> None:
    store, calls = Store(tmp_path, {}), []

    def make(missing: Mapping[str, Path]) -> None:
        calls.append(sorted(missing))
        for path in missing.values():
            path.write_text(f"made {len(calls)}")

    store.make_all({"a": {}, "b": {"n": 1}}, make)
    paths = store.make_all({"a": {}, "b": {"n": 2}, "c": {}}, make)
    assert calls == [["a", "b"], ["b", "c"]]
    assert [path.read_text() for path in paths.values()] == ["made 1", "made 2", "made 2"]
    store.make_all({"c": {}}, make)
    assert len(calls) == 2
