"""A folder of results that are made once, and again when what they were made of has changed."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lltool.gguf.whole_file import whole_file

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Store:
    """Results in `folder`, each with a record beside it, `.NAME.json`: its recipe, and its files' sizes and times.

    `base` is part of every recipe.

    A result is used again when its recipe is the recorded one and its files are as they were left. The record is
    written last, so what was interrupted is made anew.
    """

    folder: Path
    base: Recipe

    def make(self, name: str, recipe: Recipe, make: Callable[[Path], object]) -> Path:
        """The file or folder `name`, made by `make(path)` unless it is there already. `recipe` is plain JSON data."""
        return self.make_all({name: recipe}, lambda missing: make(missing[name]))[name]

    def make_all(self, recipes: Mapping[str, Recipe], make: Callable[[Mapping[str, Path]], object]) -> dict[str, Path]:
        """Several results by name; one call of `make`, which gets names and paths, makes what is missing of them."""
        whole = {name: json.loads(json.dumps({**self.base, **recipe})) for name, recipe in recipes.items()}
        targets = {name: self.folder / name for name in recipes}
        missing = {name: target for name, target in targets.items() if not self._is_made(name, whole[name])}
        for name, target in missing.items():
            self._record(name).unlink(missing_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            make(missing)
        for name, target in missing.items():
            write_whole(self._record(name), json.dumps({"recipe": whole[name], "files": _stamps(target)}, indent=1))
        return targets

    def _is_made(self, name: str, recipe: Recipe) -> bool:
        record, target = self._record(name), self.folder / name
        return record.exists() and json.loads(record.read_text()) == {"recipe": recipe, "files": _stamps(target)}

    def _record(self, name: str) -> Path:
        return self.folder / f".{name}.json"

    def compute(self, name: str, recipe: Recipe, compute: Callable[[], Any]) -> Any:
        """Like `make` for plain JSON data, kept in the file `name`."""
        return self.compute_all({name: recipe}, lambda _: {name: compute()})[name]

    def compute_all(
        self, recipes: Mapping[str, Recipe], compute: Callable[[Sequence[str]], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Like `make_all` for plain JSON data; `compute` gets the names of what is missing and gives it by name."""

        def make(missing: Mapping[str, Path]) -> None:
            for name, value in compute(list(missing)).items():
                write_whole(missing[name], json.dumps(value, indent=1))

        return {name: json.loads(path.read_text()) for name, path in self.make_all(recipes, make).items()}


def _stamps(target: Path) -> dict[str, list[int]]:
    """Size and time of each file of a result; empty when it is not there."""
    files = sorted(target.rglob("*")) if target.is_dir() else [target] if target.exists() else []
    stats = {str(path.relative_to(target.parent)): path.stat() for path in files if path.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def write_whole(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
