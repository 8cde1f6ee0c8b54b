"""Notes and errors: their prefix, their colours, and what -q leaves out."""

import io
import logging
import subprocess
import sys

import pytest

from lltool.tools import cli, talk


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def as_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes stderr a terminal; within a test, as pytest puts stderr back before each."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    return terminal


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = as_terminal(monkeypatch)
    talk.note("this\nis so")
    talk.error("bad \x1b[2J")
    assert stderr.getvalue() == (
        "lltool: \x1b[36mnote:\x1b[0m this is so\nlltool: \x1b[1;31merror:\x1b[0m bad \\x1b[2J\n"
    )


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = as_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    talk.note("x")
    assert stderr.getvalue() == "lltool: note: x\n"


def test_an_empty_no_color_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = as_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "")
    talk.note("x")
    assert "\x1b[36m" in stderr.getvalue()


def test_warnings_of_the_library_are_notes(capsys: pytest.CaptureFixture[str]) -> None:
    with talk.logged_notes():
        logging.getLogger("lltool.engine.config").warning("%s is odd", "x")
    assert capsys.readouterr().err == "lltool: note: x is odd\n"


def test_quiet_ends_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    assert cli.main(["tokenize", "-q", "none.gguf", "-p", "x"]) == 2
    assert sys.stderr is before
    assert capsys.readouterr().err.startswith("lltool: error: none.gguf: no such file")


def test_help_imports_neither_parsers_nor_numbers() -> None:
    code = (
        "import sys, lltool.tools.cli as c; c.main(['--help']);"
        "sys.exit(','.join({'argparse', 'logging', 'numpy', 'tqdm', 'tempfile', 'json'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.strip() == ""
