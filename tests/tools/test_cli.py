"""The command shell: which errors become one line, and what the exit code is."""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from lltool import __version__
from lltool.gguf.errors import InputError
from lltool.tools import cli


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Replaces `lltool inspect` with a function."""

    def put(main: Callable[[list[str]], int]) -> None:
        monkeypatch.setitem(sys.modules, "lltool.tools.inspect", SimpleNamespace(main=main))

    return put


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for name, entry in cli.COMMANDS.items():
        assert (f"  {name} " in out) == (" " not in name)
        assert (entry.help in out) == (" " not in name)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lltool {__version__}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quantise", "no command 'quantise'; did you mean 'quantize'?"),
        ("show", "no command 'show'; did you mean 'inspect'?"),
        ("xyzzy", "no command 'xyzzy'; see lltool --help"),
        ("--verion", "no option '--verion'; see lltool --help"),
    ],
)
def test_unknown_command(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name]) == 2
    assert capsys.readouterr() == ("", f"lltool: error: {message}\n")


@pytest.mark.parametrize("code", [0, 1])
def test_commands_get_their_arguments_and_give_the_exit_code(command, code: int) -> None:
    seen: list[list[str]] = []
    command(lambda argv: seen.append(argv) or code)
    assert cli.main(["inspect", "m.gguf", "--json"]) == code
    assert seen == [["m.gguf", "--json"]]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("m.gguf: bad"), "error: m.gguf: bad"),
        (InputError("two\nlines \x1b[31m"), r"error: two lines \x1b[31m"),
        (InputError("x" * 9999), f"error: {'x' * 2000}..."),
        (
            FileNotFoundError(2, "No such file or directory", "none/m.txt"),
            "error: none: no such file or folder; wanted the name of an existing file",
        ),
        (PermissionError(13, "Permission denied", "m.gguf"), "error: m.gguf: Permission denied"),
        (OSError("odd"), "error: odd"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (MemoryError(), "error: out of memory"),
    ],
)
def test_errors_are_one_line(command, error: BaseException, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    command(fail)
    assert cli.main(["inspect", "m.gguf"]) == 2
    assert capsys.readouterr() == ("", f"lltool: {message}\n")
    with pytest.raises(type(error)):
        cli.main(["--traceback", "inspect", "m.gguf"])


def test_an_interrupt_has_an_exit_code_of_its_own(command, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: list[str]) -> int:
        raise KeyboardInterrupt

    command(fail)
    assert cli.main(["inspect", "m.gguf"]) == 130
    assert capsys.readouterr() == ("", "lltool: interrupted\n")
    with pytest.raises(KeyboardInterrupt):
        cli.main(["--traceback", "inspect", "m.gguf"])


def test_our_own_mistakes_are_not_hidden(command) -> None:
    command(lambda argv: [][0])
    with pytest.raises(IndexError):
        cli.main(["inspect"])


def test_the_package_runs_as_a_module() -> None:
    run = subprocess.run([sys.executable, "-m", "lltool", "--version"], capture_output=True, text=True, check=False)
    assert run.stdout == f"lltool {__version__}\n"


def run_shell(script: str) -> subprocess.CompletedProcess[str]:
    script = script.replace(
        "lltool", f"{sys.executable} -c 'import sys; from lltool.tools.cli import main; sys.exit(main())'"
    )
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_closed_pipe_is_quiet() -> None:
    run = run_shell("set -o pipefail; (sleep 0.3; lltool --help; echo $? >&2) | true")
    assert run.stderr == "0\n"


def test_full_output_device_is_an_error() -> None:
    run = run_shell("lltool --help > /dev/full")
    assert run.returncode == 2
    assert run.stderr.splitlines()[0] == "lltool: error: No space left on device"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_like_dev_null(closed: str) -> None:
    run = run_shell(f"lltool --help {closed}")
    assert (run.returncode, run.stderr) == (0, "")


def test_standard_input_that_is_not_utf8_is_one_line() -> None:
    code = (
        "import sys, types; from lltool.tools.cli import main;"
        "sys.modules['lltool.tools.inspect'] = types.SimpleNamespace(main=lambda argv: print(input()));"
        "sys.exit(main(['inspect']))"
    )
    run = subprocess.run([sys.executable, "-c", code], input=b"caf\xe9\n", capture_output=True, check=False)
    assert run.returncode == 2
    assert run.stderr == b"lltool: error: standard input: b'\\xe9' is not UTF-8; convert the text first\n"
