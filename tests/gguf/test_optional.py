"""Packages of the extras: one line names the extra where a package is missing, and results become data frames."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.optional import EXTRAS, require, to_frame
from lltool.tools.cli import main

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("package", EXTRAS)
def test_the_extra_that_a_message_names_installs_the_package(package: str) -> None:
    wanted = PROJECT["optional-dependencies"][EXTRAS[package]]
    assert package.replace("_", "-") in [re.split(r"[<>=]", requirement)[0] for requirement in wanted]
    assert not any(requirement.startswith(package.replace("_", "-")) for requirement in PROJECT["dependencies"])


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError) as raised:
        require("matplotlib", "speed.png")
    assert str(raised.value) == "speed.png: needs matplotlib, which is not installed; pip install 'lltool[plot]'"
    require("pandas", "to_pandas()")  # is installed


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "-m", "missing.gguf", "--plot", "speed.png"],
        ["bench", "-m", "missing.gguf", "--save", "speed"],
        ["bench", "compare", "a.json", "b.json", "--plot", "speed.svg"],
        ["quantize", "missing.gguf", "Q4_0", "--report", "folder"],
        ["demo"],
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_runs(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The models and results do not exist, and no message says so."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "needs matplotlib, which is not installed; pip install 'lltool[plot]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_frame_has_columns_or_records() -> None:
    for data in ({"a": [1, 2], "b": ["x", "y"]}, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]):
        assert to_frame(data).to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}


def test_a_frame_without_pandas_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"to_pandas\(\): needs pandas, .* pip install 'lltool\[pandas\]'"):
        to_frame({})
