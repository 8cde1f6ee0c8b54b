"""Completion, with bash as it completes, and what every command's parser and help have."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lltool.tools import cli
from lltool.tools.completion import SHELLS, find_commands


@pytest.fixture(scope="module")
def script() -> str:
    run = subprocess.run(
        [sys.executable, "-m", "lltool", "completion", "bash"], capture_output=True, text=True, check=True
    )  # fmt: skip
    return run.stdout


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    code = f'{script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lltool; printf "%s\\n" "${{COMPREPLY[@]}}"'
    run = subprocess.run(["bash", "-c", code, "bash", *words], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return run.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("lltool", "qu"), ["quantize"]),
        (("lltool", "--v"), ["--version"]),
        (("lltool", "run", "--top"), ["--top-k", "--top-p", "--top-nsigma", "--top-n-sigma"]),
        (("lltool", "run", "-m", "mod"), []),  # then bash completes names of files
        (("lltool", "run", "--precision", ""), ["int8", "f32"]),
        (("lltool", "bench", "--format", "js"), ["json", "jsonl"]),
        (("lltool", "bench", "co"), ["compare"]),
        (("lltool", "bench", "compare", "--li"), ["--limit"]),
        (("lltool", "gate", ""), ["record", "check"]),
        (("lltool", "gate", "record", "--ch"), ["--chunks"]),
        (("lltool", "tasks", "hellaswag", "--ta"), ["--tasks"]),
        (("lltool", "completion", ""), ["bash", "zsh", "fish"]),
        (("lltool", "help", "gat"), ["gate"]),
    ],
)
def test_bash_offers(
    script: str, words: tuple[str, ...], offered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no files are
    assert complete(script, *words) == offered


def test_bash_offers_files_beside_commands(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "common.gguf").touch()
    assert complete(script, "lltool", "bench", "com") == ["compare", "common.gguf"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_option_of_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    commands = find_commands()
    assert {"run", "gate record", "tasks winogrande", "bench history", "help"} < {command.name for command in commands}
    for command in commands:
        for option in command.options:
            for name in option.names:
                old = f"-o {name[1:]}" if len(name) > 2 else f"-s {name[1:]}"
                assert (name if shell != "fish" else f"-l {name[2:]}" if name.startswith("--") else old) in script


def test_flags_of_llama_cpp_are_not_offered(script: str) -> None:
    assert "--mmproj" not in script


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_examples_and_quiet(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["help", *name.split()], [*name.split(), "--help"], [*name.split(), "-h"]):
        with pytest.raises(SystemExit) as left:
            cli.main(line)
        assert not left.value.code
        short = capsys.readouterr().out
        assert short.startswith(f"usage: lltool {name} ")
        assert "\nexamples:\n  " in short
        assert len(short.splitlines()) < 90
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help-all"])
    long = capsys.readouterr().out
    parser = importlib.import_module(f"lltool.tools.{cli.COMMANDS[name].module}").parser()
    for option in parser.options():
        assert all(re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", long) for flag in option.option_strings)
    assert {"-q", "--quiet"} <= {flag for option in parser.options() for flag in option.option_strings}
    assert (short == long) == ("--help-all` shows all" not in short)


SILENT = ("chat", "completion", "gate", "serve", "tasks")


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in SILENT])
def test_every_command_that_reports_has_json(name: str) -> None:
    parser = importlib.import_module(f"lltool.tools.{cli.COMMANDS[name].module}").parser()
    assert "--json" in {flag for option in parser.options() for flag in option.option_strings}
    for inner, _ in parser.commands().values():
        assert "--json" in {flag for option in inner.options() for flag in option.option_strings}
