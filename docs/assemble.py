"""Puts the manual's pages together in a folder: those of docs/, and the options of each command, from its parser.

python docs/assemble.py build/manual
"""

import argparse
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import lltool
from lltool.tools.cli import COMMANDS

HERE = Path(__file__).parent
ROOMS = ("tools", "eval", "engine", "quant", "gguf")
LANGUAGES = {"en": "Options", "zh": "选项"}  # and the heading above a command's options


def assemble(folder: Path) -> None:
    """Writes the pages of all languages to `folder`, which is replaced. A page that lacks a language is English."""
    if folder.exists():
        shutil.rmtree(folder)
    for language, heading in LANGUAGES.items():
        shutil.copytree(HERE / language, folder / language)
        (folder / language / "commands").mkdir(exist_ok=True)
        for name in COMMANDS:
            written = [HERE / known / "commands" / f"{name}.md" for known in (language, "en")]
            text = next((page.read_text() for page in written if page.exists()), f"# {name}\n\n{COMMANDS[name].help}\n")
            page = folder / language / "commands" / f"{name}.md"
            page.write_text(f"{text}\n## {heading}\n\n{options(name)}\n")
        library = folder / language / "library" / "index.md"
        library.write_text(f"{library.read_text()}\n{docstrings()}\n")


def docstrings() -> str:
    """The directives of mkdocstrings for the public names."""
    return "\n".join(f"::: lltool.{name}" for name in lltool.__all__ if not name.startswith("_"))


def copy_package(folder: Path) -> None:
    """Copies the package's Python files to `folder`, which is replaced; mkdocstrings wants `__init__.py` everywhere."""
    if folder.exists():
        shutil.rmtree(folder)
    for room in ROOMS:
        shutil.copytree(HERE.parent / room, folder / "lltool" / room, ignore=_ignore)
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        (inner / "__init__.py").touch()
    shutil.copy(Path(lltool.__file__), folder / "lltool" / "__init__.py")


def _ignore(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not (name.endswith(".py") or (Path(folder) / name).is_dir())} | {"csrc", "page"}


def options(command: str) -> str:
    """The options of a command in Markdown: its usage, and a table for each group of options."""
    parser = importlib.import_module(f"lltool.tools.{COMMANDS[command].module}").parser()
    return "\n\n".join(_parts(parser))


def _parts(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"```text\n{parser.format_usage().rstrip()}\n```"
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        nested = [action for action in shown if isinstance(action, argparse._SubParsersAction)]
        rows = [_row(action, parser) for action in shown if action not in nested]
        if rows:
            yield "\n".join([f"**{group.title}**\n", "| | |", "|---|---|", *rows])
        for action in nested:
            for name, below in action.choices.items():
                yield f"### {name}"
                yield from _parts(below)


def _row(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    formatter = parser._get_formatter()
    names = _code(formatter._format_action_invocation(action))
    return f"| {names} | {_cell(formatter._expand_help(action) if action.help else '')} |"


def _code(text: str) -> str:
    return "`` " + text.replace("|", "\\|") + " ``"


def _cell(text: str) -> str:
    """Help as the text of a cell: nothing in it is markup."""
    return "".join(f"\\{character}" if character in "\\`*_<>|[]{}" else character for character in text)


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
    copy_package(Path(sys.argv[2]))
