"""A folder that caches results, and makes a result again when its recipe has changed."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import read_bytes
from lltool.gguf.whole_file import scratch_folder, whole_file

CacheKey = Mapping[str, Any]


@dataclass(frozen=True)
class Store:
    """Results in `folder`; a record `.NAME.json` beside each holds its recipe and the sizes and times of its files.

    `base` is part of every recipe.

    A result is reused if its recipe equals the recorded one and its files are unchanged. The record is written once
    the result is complete and before it is moved into place, so a result without a record was not made by lltool.
    """

    folder: Path
    base: CacheKey

    def make(self, name: str, recipe: CacheKey, make: Callable[[Path], object]) -> Path:
        """Returns the file or folder `name`, which `make(path)` makes if it is missing. `recipe` is plain JSON data."""
        return self.make_all({name: recipe}, lambda missing: make(missing[name]))[name]

    def make_all(
        self, recipes: Mapping[str, CacheKey], make: Callable[[Mapping[str, Path]], object]
    ) -> dict[str, Path]:
        """Returns several results by name; a single call of `make`, with paths by name, makes the missing ones.

        A result of another recipe is replaced. Raises InputError for anything else that has one of the names.
        """
        full = {name: json.loads(json.dumps({**self.base, **recipe})) for name, recipe in recipes.items()}
        missing = [name for name in recipes if not self._is_made(name, full[name])]
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            with scratch_folder(self.folder) as scratch:
                make({name: scratch / name for name in missing})
                for name in missing:
                    self._keep(scratch / name, full[name])
        return {name: self.folder / name for name in recipes}

    def _is_made(self, name: str, recipe: CacheKey) -> bool:
        """Whether the result is up to date. Raises InputError if lltool did not make it, or it was changed since."""
        record, target = self._record(name), self.folder / name
        if not os.path.lexists(target):
            return False
        if not record.exists():
            raise InputError(f"{target}: exists, and lltool did not make it; move it away or name another folder")
        try:
            found = json.loads(read_bytes(record))
            kept, is_same = dict(found["files"]), found["recipe"] == recipe
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{record}: not a record of lltool; move it away or name another folder") from None
        now = _stamps(target)
        if any(kept.get(file) != stamp for file, stamp in now.items()):
            raise InputError(
                f"{target}: has changed since lltool made it, and would be replaced; move it away or delete it"
            )
        return is_same and now == kept

    def _keep(self, made: Path, recipe: CacheKey) -> None:
        """Writes a result's record and moves the result into place."""
        target = self.folder / made.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        write_whole(self._record(made.name), json.dumps({"recipe": recipe, "files": _stamps(made)}, indent=1))
        made.replace(target)

    def _record(self, name: str) -> Path:
        return self.folder / f".{name}.json"

    def compute(self, name: str, recipe: CacheKey, compute: Callable[[], Any]) -> Any:
        """Like `make` for plain JSON data, which the file `name` holds."""
        return self.compute_all({name: recipe}, lambda _: {name: compute()})[name]

    def compute_all(
        self, recipes: Mapping[str, CacheKey], compute: Callable[[Sequence[str]], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Like `make_all` for plain JSON data; `compute` gets the missing names and returns their data by name."""

        def make(missing: Mapping[str, Path]) -> None:
            for name, value in compute(list(missing)).items():
                write_whole(missing[name], json.dumps(value, indent=1))

        return {name: json.loads(read_bytes(path)) for name, path in self.make_all(recipes, make).items()}


def _stamps(target: Path) -> dict[str, list[int]]:
    """The size and modification time of each file of a result; empty if the result does not exist."""
    files = sorted(target.rglob("*")) if target.is_dir() else [target] if target.exists() else []
    stats = {str(path.relative_to(target.parent)): path.stat() for path in files if path.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def write_whole(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
