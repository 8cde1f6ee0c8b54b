"""What all commands share: argument parsers, the model, formats of reports and their file."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from lltool.eval.common.quantities import parse_size
from lltool.gguf.errors import InputError
from lltool.gguf.optional import require
from lltool.gguf.text_file import MAX_TEXT, decode_text, plain_line_ends
from lltool.gguf.whole_file import check_output, whole_file
from lltool.tools.parser import QUIET, CommandParser
from lltool.tools.talk import note

T = TypeVar("T")
MODEL = "a GGUF file, a folder with one, or the id of one on the Hub, such as ORG/NAME:Q4_K_M"
Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"  # of add_subparsers; its type is not public
_NO_MODEL = f"no model is named; wanted {MODEL}"


def command_parser(
    command: str,
    description: str,
    examples: str,
    *,
    json_flag: bool = False,
    most_used: str = "",
    quiet: tuple[str, ...] = QUIET,
) -> CommandParser:
    """A parser for `lltool COMMAND` that raises InputError; its help ends with `examples`, one command a line.

    `most_used` are the options, separated by spaces, that --help shows; --help-all shows all of them;
    `quiet` are the names of the option for no notes.
    """
    parser = CommandParser(prog=f"lltool {command}", quiet=quiet, **_texts(description, examples, most_used))
    if json_flag:
        add_json_flag(parser)
    return parser


def add_command(
    commands: Commands, name: str, help: str, description: str, examples: str, *, most_used: str = ""
) -> CommandParser:
    """Adds the parser of a command's command, such as `lltool gate record`; `help` is its line in the other's help."""
    parser = commands.add_parser(name, help=help, **_texts(description, examples, most_used))
    add_json_flag(parser)
    return parser


def add_json_flag(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _texts(description: str, examples: str, most_used: str) -> dict[str, Any]:
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    shown = f"-h --json -q {most_used}" if most_used else ""
    return {"description": description, "epilog": f"examples:\n{lines}", "most_used": shown}


def add_model_arguments(parser: argparse.ArgumentParser, words: str = "MODEL", help: str = MODEL) -> None:
    """Adds all ways to name a model, which `take_model` reads; `words` are the arguments that are no options."""
    add = parser.add_argument
    add("words", nargs="*", metavar=words, help=help)
    add("-m", "--model", action="append", metavar="MODEL", help="the same, as an option")
    add("-hf", "--hf-repo", action="append", metavar="ID", help="a model on the Hub: ORG/NAME or ORG/NAME:TYPE")
    add("-hff", "--hf-file", metavar="FILE", help="with -hf: the name of the file to take")
    add("--offline", action="store_true", help="take models on the Hub from its cache on this machine only")


def take_model(arguments: argparse.Namespace) -> Path:
    """The file of the one model that was named, which is downloaded if it has to be. Raises InputError if none was."""
    return find_named_model(take_name(arguments), offline=arguments.offline)


def take_optional_model(arguments: argparse.Namespace) -> Path | None:
    """Like `take_model`, but None if no model was named."""
    is_named = arguments.words or arguments.model or arguments.hf_repo
    return take_model(arguments) if is_named else None


def take_name(arguments: argparse.Namespace, *, more: bool = False) -> str:
    """The name of the one model, for `find_named_model`; it is removed from the words, of which `more` may be left."""
    names = _named_models(arguments)
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)}: options name {len(names)} models, wanted one")
    if not names and not arguments.words:
        raise InputError(_NO_MODEL)
    name: str = names[0] if names else arguments.words.pop(0)
    if arguments.words and not more:
        raise InputError(f"{arguments.words[0]!r} is one argument too many")
    return name


def take_models(arguments: argparse.Namespace) -> list[Path]:
    """The files of several models; a word or an option can hold several names, with commas between them."""
    names = words_with_model(arguments)
    if not names:
        raise InputError(_NO_MODEL)
    return [find_named_model(name, offline=arguments.offline) for given in names for name in _parts(given)]


def words_with_model(arguments: argparse.Namespace) -> list[str]:
    """All words, with the model first if an option names it."""
    return [*_named_models(arguments), *arguments.words]


def folder_beside(model: Path) -> Path:
    """The folder for files made from a model: its own, or the current one if the model is in the Hub's cache."""
    return Path() if any(part.startswith("models--") for part in model.parts) else model.parent


def _named_models(arguments: argparse.Namespace) -> list[str]:
    """The models that options name; one that was given as in llama.cpp, -hf ID, as hf://ID."""
    if arguments.hf_file and not arguments.hf_repo:
        raise InputError("-hff names a file of a model on the Hub; name the model with -hf")
    file = f"/{arguments.hf_file}" if arguments.hf_file else ""
    return [*(arguments.model or []), *(f"hf://{id}{file}" for id in arguments.hf_repo or [])]


def find_named_model(name: str, *, offline: bool = False) -> Path:
    """The file of a model, which is downloaded if it is on the Hub; `offline` takes it from the Hub's cache."""
    from lltool.gguf.hub import find_model

    # huggingface_hub reads its environment when it is imported, which find_model does only for a model on the Hub
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    return find_model(name, say=note)


def positive(text: str) -> int:
    """The type of an argument that is a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The type of an argument that `parse` reads, whose InputError becomes the parser's message about the argument."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


byte_size = checked(parse_size)


def paths(text: str) -> list[Path]:
    """The type of an argument with comma-separated file names; with action `extend` it can be given several times."""
    return [Path(part) for part in checked(_parts)(text)]


def _parts(text: str) -> list[str]:
    if not all(text.split(",")):
        raise InputError(f"{text!r} lacks the name of a file")
    return text.split(",")


def output_file(text: str) -> Path:
    """The type of an argument that names an output file; checks early that the file can be written."""
    checked(lambda name: check_output(Path(name)))(text)
    return Path(text)


def add_format_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, formats: Sequence[str], *, llama_bench: bool = False
) -> None:
    """Adds --format (default: the first of `formats`), --json, and -o for the file that `output_to` writes.

    With `llama_bench`, -o takes a format too, as in llama-bench.
    """

    def read_output(text: str) -> str | Path:
        if llama_bench and not set("./") & {*text}:
            if text not in formats:
                known = ", ".join(formats)
                raise argparse.ArgumentTypeError(f"{text!r} is not one of {known}; wanted -o ./{text} for a file")
            return text
        if text not in formats:
            return output_file(text)
        raise argparse.ArgumentTypeError(f"{text!r} is a format; wanted --format {text}, or -o ./{text} for a file")

    add = parser.add_argument
    add("--format", choices=formats, default=formats[0], help=f"what to print (default {formats[0]})")
    add("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    also = ", or the format, as in llama-bench" if llama_bench else ""
    add("-o", "--output", type=read_output, metavar="FILE", help=f"write the result to FILE{also} (default: print it)")


def take_format(arguments: argparse.Namespace) -> None:
    """Moves a format that was given as in llama-bench, `-o csv`, to `format`."""
    if isinstance(arguments.output, str):
        arguments.format, arguments.output = arguments.output, None


@contextmanager
def output_to(path: Path | None) -> Iterator[None]:
    """Within this context, `path` gets what is printed on stdout; it appears whole or not at all. None: as always."""
    if path is None:
        yield
        return
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file, redirect_stdout(file):
        yield


def image_file(text: str) -> Path:
    """The type of an argument that names an image to write: .png or .svg."""
    if Path(text).suffix.lower() not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a .png or .svg file")
    require("matplotlib", text)
    return output_file(text)


def pictures_place(text: str) -> Path:
    """The type of an argument that names a folder, or the stem of names, for files among which are pictures."""
    require("matplotlib", text)
    return Path(text)


def add_escape_arguments(parser: argparse.ArgumentParser, which: str) -> None:
    """Adds llama.cpp's -e and --no-escape, stored as `escape`; `which` names the arguments that they apply to."""
    parser.add_argument(
        "-e", "--escape", action="store_true", default=True,
        help=rf"replace \n \r \t \' \" \\ and \xHH (a byte) in {which}, but not in files (the default)",
    )  # fmt: skip
    parser.add_argument("--no-escape", dest="escape", action="store_false", help="leave every backslash as it is")


def read_standard_input() -> str:
    """All of standard input, as `read_prompt` reads files. Raises InputError when it is too large or not UTF-8."""
    data = sys.stdin.buffer.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise InputError(f"standard input: has more than {MAX_TEXT >> 20} MiB, the limit for a text")
    return plain_line_ends(decode_text(data, "standard input"))


def print_json(report: Any) -> None:
    """Prints a report as JSON, in ASCII so that any terminal can show any string; NaN and infinity become null."""
    try:
        text = json.dumps(report, indent=2, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(report), indent=2)
    print(text)


def _without_nan(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_nan(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_nan(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
    return value
