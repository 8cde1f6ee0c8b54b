"""`lltool <command> ...`: finds the command's module and runs it; what goes wrong becomes one line."""

import codecs
import difflib
import importlib
import io
import os
import signal
import sys
from typing import NamedTuple, NoReturn

from lltool import __version__
from lltool.gguf.errors import InputError
from lltool.tools.arguments import printable


class Command(NamedTuple):
    module: str
    help: str


COMMANDS = {
    "convert": Command("convert", "make a GGUF file of a Hugging Face checkpoint"),
    "export": Command("export", "make a Hugging Face checkpoint of a GGUF file"),
    "quantize": Command("quantize", "make a GGUF file smaller"),
    "imatrix": Command("imatrix", "collect importance statistics for quantizing"),
    "run": Command("run", "generate text, or chat"),
    "bench": Command("bench", "measure prefill and decode speed"),
    "perplexity": Command("perplexity", "measure how well a model predicts a text"),
    "gate": Command("gate", "tell in CI whether a model still says what it said"),
    "tasks": Command("tasks", "ask a model the questions of HellaSwag, Winogrande, multiple choice"),
    "report": Command("report", "make one page of results: which quantization to take"),
    "recommend": Command("recommend", "make and measure quantizations, and say which one to take"),
    "inspect": Command("inspect", "show what is in a GGUF file"),
    "tokenize": Command("tokenize", "show the tokens of a text"),
    "demo": Command("demo", "all of the above on a small model, with a table and a plot"),
}
_LISTING = "\n".join(f"  {name:<12}{command.help}" for name, command in COMMANDS.items())
_LONGEST_MESSAGE = 2000  # characters
HELP = f"""\
usage: lltool [--traceback] COMMAND ...

Convert, quantize, measure and run local language models in GGUF.

commands:
{_LISTING}

options:
  --version     print the version
  --traceback   show where an error comes from instead of one line

`lltool COMMAND --help` tells more and shows an example.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns 0 for good, 1 for a negative result, 2 for an error."""
    arguments = sys.argv[1:] if argv is None else argv
    show_traceback = arguments[:1] == ["--traceback"]
    if show_traceback:
        arguments = arguments[1:]
    _prepare_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # under nohup it is ignored, and stays so
            signal.signal(number, signal.default_int_handler)  # so that no temporary file is left behind
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of stdout (`| head`) has enough; keep Python's flush at exit from failing on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError, MemoryError, KeyboardInterrupt) as error:
        if show_traceback:
            raise
        _say(_describe(error))
        return 2


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell, as in `>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file may hold what the terminal cannot show
    if isinstance(sys.stdin, io.TextIOWrapper):
        codecs.register_error("refuse", _refuse)
        sys.stdin.reconfigure(encoding="utf-8", errors="refuse")


def _refuse(error: UnicodeError) -> NoReturn:
    """The error handler of standard input."""
    assert isinstance(error, UnicodeDecodeError)
    found = error.object[error.start : error.end]
    raise InputError(f"standard input: {found!r} is not UTF-8; convert the text first")


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case [] | ["-h" | "--help"]:
            print(HELP, end="")
            return 0
        case ["--version"]:
            print(f"lltool {__version__}")
            return 0
        case [name, *rest] if name in COMMANDS:
            module = importlib.import_module(f"lltool.tools.{COMMANDS[name].module}")
            code: int = module.main(rest)
            return code
    close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
    kind = "option" if arguments[0].startswith("-") else "command"
    raise InputError(
        f"no {kind} {arguments[0]!r}; " + (f"did you mean {close[0]!r}?" if close else "see lltool --help")
    )


def _describe(error: BaseException) -> str:
    match error:
        case KeyboardInterrupt():
            return "interrupted"
        case MemoryError():
            return f"error: out of memory {error}".rstrip()
        case OSError(filename=str() | bytes() | os.PathLike(), strerror=str()):
            return f"error: {os.fsdecode(error.filename)}: {error.strerror}"
        case OSError(strerror=str()):
            return f"error: {error.strerror}"
    return f"error: {error}"


def _say(message: str) -> None:
    """One line on stderr, whatever a hostile file has put into the message."""
    line = printable(" ".join(message.split()))
    print("lltool:", line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}...", file=sys.stderr)
