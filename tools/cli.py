"""`lltool <command> ...`: finds the command's module, runs it, and prints an error as one line."""

import codecs
import difflib
import importlib
import io
import os
import sys
from contextlib import redirect_stderr
from typing import NamedTuple, NoReturn

from lltool import __version__
from lltool.gguf.errors import InputError
from lltool.gguf.names import describe_os_error
from lltool.tools import talk
from lltool.tools.signals import StopSignals


class Command(NamedTuple):
    module: str
    help: str


COMMANDS = {
    "convert": Command("convert", "make a GGUF file from a Hugging Face checkpoint, an adapter or a GGUF file"),
    "verify": Command("verify", "compare a GGUF file with its checkpoint in transformers"),
    "export": Command("export", "make a Hugging Face checkpoint from a GGUF file"),
    "quantize": Command("quantize", "make a GGUF file smaller"),
    "imatrix": Command("imatrix", "collect importance statistics for quantizing"),
    "run": Command("run", "generate text"),
    "chat": Command("chat", "have a conversation with a model"),
    "serve": Command("serve", "answer requests over HTTP, with OpenAI's API"),
    "embed": Command("embed", "make vectors of texts, for search"),
    "rerank": Command("rerank", "score how well documents answer a query"),
    "bench": Command("bench", "measure prefill and decode speed"),
    "bench compare": Command("bench_compare", "compare two files of results"),
    "bench history": Command("bench_history", "show the results of earlier runs"),
    "perplexity": Command("perplexity", "measure how well a model predicts a text"),
    "gate": Command("gate", "check in CI that a model has not regressed"),
    "tasks": Command("tasks", "score a model on HellaSwag, Winogrande, multiple choice"),
    "report": Command("report", "show results on one page, to choose a quantization"),
    "recommend": Command("recommend", "make and measure quantizations, and recommend one"),
    "inspect": Command("inspect", "show what is in a GGUF file"),
    "set": Command("set", "change the metadata of a GGUF file"),
    "split": Command("split", "cut a GGUF file into several"),
    "merge": Command("merge", "make one GGUF file from its shards"),
    "diff": Command("diff", "show how two GGUF files differ"),
    "lint": Command("lint", "look for mistakes in a GGUF file"),
    "devices": Command("devices", "list the devices that models can run on"),
    "fit": Command("fit", "tell whether a model fits in memory"),
    "tokenize": Command("tokenize", "show the tokens of a text"),
    "demo": Command("demo", "run the main commands on a small model, with a table and a plot"),
    "completion": Command("completion", "print a script that completes commands and options in a shell"),
}
_OTHER_NAMES = {
    "cli": "run",
    "generate": "run",
    "server": "serve",
    "show": "inspect",
    "dump": "inspect",
    "ppl": "perplexity",
    "batched-bench": "bench",
}
"""Commands of llama.cpp, Ollama and mlx-lm by other names."""
_LISTING = "\n".join(f"  {name:<12}{command.help}" for name, command in COMMANDS.items() if " " not in name)
HELP = f"""\
usage: lltool [--traceback] COMMAND ...

Convert, quantize, measure and run local language models in GGUF.

commands:
{_LISTING}

options:
  --version     print the version
  --traceback   show a traceback for an error instead of one line

`lltool help COMMAND` explains a command and shows examples. The flags of llama.cpp are known to every command.

The exit code is 0 for success, 1 for a negative result, 2 for an error, 130 after Ctrl-C, 143 after SIGTERM.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns 0 for success, 1 for a negative result, 2 for an error, 128 + N after signal number N.

    If `argv` is None, it takes the arguments of the command line and assumes that the process ends after it.
    """
    arguments = sys.argv[1:] if argv is None else argv
    show_traceback = arguments[:1] == ["--traceback"]
    if show_traceback:
        arguments = arguments[1:]
    with StopSignals(for_good=argv is None) as signals:
        try:
            return _run(arguments, show_traceback)
        except KeyboardInterrupt:
            if show_traceback:
                raise
            print("lltool: interrupted", file=sys.stderr)
            return signals.exit_code


def _run(arguments: list[str], show_traceback: bool) -> int:
    _prepare_streams()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of stdout (such as `| head`) has closed it; keep Python's flush at exit from failing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError, MemoryError) as error:
        if show_traceback:
            raise
        talk.error(_describe(error))
        return 2


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell, as in `>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file may hold what the terminal cannot show
    if isinstance(sys.stdin, io.TextIOWrapper):
        codecs.register_error("refuse", _refuse)
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="refuse")


def _refuse(error: UnicodeError) -> NoReturn:
    """The decoding error handler of standard input, which raises InputError."""
    assert isinstance(error, UnicodeDecodeError)
    found = error.object[error.start : error.end]
    raise InputError(f"standard input: {found!r} is not UTF-8; convert the text first")


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case [] | ["help" | "-h" | "--help"] | ["help", "-h" | "--help"]:
            print(HELP, end="")
            return 0
        case ["--version"] | ["version"]:
            print(f"lltool {__version__}")
            return 0
        case ["help", *names]:
            return _dispatch([*names, "--help"])
        case [first, second, *rest] if f"{first} {second}" in COMMANDS:
            return _run_command(f"{first} {second}", rest)
        case [name, *rest] if name in COMMANDS:
            return _run_command(name, rest)
    close = [_OTHER_NAMES[arguments[0]]] if arguments[0] in _OTHER_NAMES else []
    close = close or difflib.get_close_matches(arguments[0], COMMANDS, n=1)
    kind = "option" if arguments[0].startswith("-") else "command"
    raise InputError(
        f"no {kind} {arguments[0]!r}; " + (f"did you mean {close[0]!r}?" if close else "see lltool --help")
    )


def _run_command(name: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"lltool.tools.{COMMANDS[name].module}")
    with redirect_stderr(sys.stderr), talk.logged_notes():  # a command may silence stderr; errors are said afterwards
        code: int = module.main(arguments)
    return code


def _describe(error: BaseException) -> str:
    match error:
        case MemoryError():
            return f"out of memory {error}".rstrip()
        case OSError():
            return describe_os_error(error)
    return str(error)
