"""The built-in recipes, which are llama-quantize's file types (recipes.toml), and the user's recipe files."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.names import near_names
from lltool.gguf.regular_file import read_bytes
from lltool.quant.recipe_language import Recipe, parse_recipe

_DATA = Path(__file__).with_name("recipes.toml")
_TABLES = tomllib.loads(_DATA.read_text(encoding="utf-8"))

RECIPES: Mapping[str, Recipe] = {
    name: parse_recipe(table, name, {}, _TABLES["shared"], f"{_DATA.name}: {name}")
    for name, table in _TABLES["recipes"].items()
}
"""The built-in recipes, which are llama-quantize's file types, by name."""

KEPT: Mapping[str, tuple[str, ...]] = {name: tuple(parts) for name, parts in _TABLES["kept"].items()}
"""Parts of the names of matrices that keep their types under every recipe, by architecture, or under "all"."""

SUBSTITUTES: Mapping[GGMLType, GGMLType] = {
    GGMLType[wanted]: GGMLType[type] for type, names in _TABLES["substitutes"].items() for wanted in names
}
"""The type to use instead of a wanted one if the rows are not whole blocks of it."""


def find_recipe(name: str) -> Recipe:
    """The recipe for a file type's name in any case, its number, or the path of a .toml file.

    Raises InputError for any other name and for a file that is not a recipe.
    """
    if name.lower().endswith(".toml"):
        return read_recipe(name)
    for recipe in RECIPES.values():
        if name.upper() in (recipe.name, *recipe.aliases) or name == str(_number(recipe)):
            return recipe
    close = near_names(name, list(RECIPES), 1)
    meant = f"did you mean {close[0]}?" if close else f"wanted one of {', '.join(RECIPES)}, or a recipe's file (.toml)"
    raise InputError(f"file type {name!r} is unknown; {meant}")


def read_recipe(path: str | Path) -> Recipe:
    """A user's recipe. Raises InputError for a file that is not a recipe."""
    path = Path(path)
    try:
        table: dict[str, Any] = tomllib.loads(read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a recipe in TOML: {error}") from error
    if "version" not in table:
        raise InputError(f"{path}: has no version; begin with `version = 1`")
    return parse_recipe(table, path.stem, RECIPES, _TABLES["shared"], str(path))


def _number(recipe: Recipe) -> int | None:
    return None if recipe.file_type is None else int(recipe.file_type)
