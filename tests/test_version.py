"""The version stands in pyproject.toml only; what states it elsewhere agrees."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import lltool
from lltool.tools.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


def test_package_command_and_metadata_state_the_projects_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lltool {VERSION}\n"
    assert lltool.__version__ == version("lltool") == VERSION


def test_the_changelog_has_the_version_first_or_next_to_what_is_unreleased() -> None:
    entries = re.findall(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(entry for entry in entries if entry != "Unreleased") == VERSION
