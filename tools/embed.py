"""`lltool embed`: vectors of texts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.arguments import (
    add_model_arguments,
    command_parser,
    output_file,
    output_to,
    positive,
    read_standard_input,
    take_model,
)
from lltool.tools.engine_arguments import add_engine_arguments, engine_options
from lltool.tools.parser import CommandParser

if TYPE_CHECKING:
    from lltool.eval.common.text_list import ListedText

EXAMPLES = """
lltool embed -m all-MiniLM-L6-v2-F16.gguf -p "The sky is blue."
lltool embed -m model.gguf -f texts.txt -o vectors.npy
lltool embed -m model.gguf -f texts.jsonl --field title -o vectors.jsonl
cat texts.txt | lltool embed -m model.gguf -f - --format csv
"""
_SUFFIXES = {".npy": "npy", ".jsonl": "jsonl", ".csv": "csv", ".json": "json"}


def parser() -> CommandParser:
    parser = command_parser(
        "embed",
        "Makes a vector of each text: texts of similar meaning have a small angle between them.",
        EXAMPLES,
        most_used="-m -hf -p -f -o --format --pooling --truncate -c -t",
    )
    add_model_arguments(parser)
    add_text_arguments(parser, "-p", "--prompt", "a text; can be given several times")
    add = parser.add_argument
    add(
        "-o",
        "--output",
        type=output_file,
        metavar="FILE",
        help="write to FILE, .npy, .jsonl, .csv or .json",
    )
    add("--format", choices=("jsonl", "csv", "json"), help="what to print (default jsonl)")
    add("--json", dest="format", action="store_const", const="json", help="the same as --format json: one object")
    add(
        "--pooling",
        choices=("mean", "cls", "last"),
        help="the mean of the tokens' states, or that of the first or the last token (default: as the file says)",
    )
    add("--no-normalize", dest="normalize", action="store_false", help="keep the lengths of vectors, not 1")
    add_size_arguments(parser)
    add_engine_arguments(parser, measures=True)
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    texts = read_texts(arguments)
    kind = _format(arguments)
    path = take_model(arguments)

    from lltool.engine.embed import embed
    from lltool.engine.model import load_model
    from lltool.engine.rank import encode_text
    from lltool.eval.common.vector_file import vector_lines, write_npy

    options = size_options(arguments) | engine_options(arguments)
    with load_model(path, output="pooled", pooling=arguments.pooling, **options) as model:
        ids = []
        for listed in texts:
            with named(listed):
                ids.append(encode_text(model, listed.text, truncate=arguments.truncate))
        vectors = embed(model, ids, pooling=arguments.pooling, normalize=arguments.normalize)
    if kind == "npy":
        write_npy(arguments.output, vectors)
        return 0
    with output_to(arguments.output):
        for line in vector_lines([listed.text for listed in texts], vectors, kind):
            print(line)
    return 0


def add_text_arguments(parser: argparse.ArgumentParser, short: str, long: str, help: str) -> None:
    """Adds the ways to give several texts, which `read_texts` reads."""
    add = parser.add_argument
    add(short, long, dest="texts", action="append", default=[], metavar="TEXT", help=help)
    add("-f", "--file", help="a file with a text in each line, or a JSON value in each line of a .jsonl; -: stdin")
    add("--field", default="text", help="the name of the text in the objects of a .jsonl (default text)")
    add("--truncate", action="store_true", help="cut texts that are longer than the context (default: an error)")


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-c", "--ctx-size", type=positive, help="the longest text in tokens (default: the model's, at most 4096)")
    add("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    add("-np", "--parallel", type=positive, default=8, help="texts at once, of a decoder (default 8)")
    add("--precision", choices=("int8", "f32"), default="int8", help="f32: exact, slower kernels")


def size_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `load_model`."""
    return {
        "context": arguments.ctx_size,
        "batch": arguments.batch_size,
        "sequences": arguments.parallel,
        "precision": arguments.precision,
    }


def read_texts(arguments: argparse.Namespace) -> "list[ListedText]":
    """The texts of the command line and of the file. Raises InputError if there are none."""
    from lltool.eval.common.text_list import ListedText, list_texts, read_list
    from lltool.gguf.text_file import decode_argument

    found = [ListedText("the command line", decode_argument(text, "the text")) for text in arguments.texts]
    if arguments.file == "-":
        found += list_texts(read_standard_input(), "standard input")
    elif arguments.file is not None:
        found += read_list(Path(arguments.file), arguments.field)
    if not found:
        raise InputError("no texts are given; wanted a file of them with -f, or -f - for standard input")
    return found


class named:
    """A context in which an InputError begins with the place of a text."""

    def __init__(self, listed: "ListedText") -> None:
        self.listed = listed

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if type(error) is InputError:
            raise InputError(f"{self.listed.where}: {error}") from None


def _format(arguments: argparse.Namespace) -> str:
    """The format of the output file, by its name, or of what is printed."""
    path = arguments.output
    if path is None:
        return str(arguments.format or "jsonl")
    if path.suffix not in _SUFFIXES:
        raise InputError(f"-o {path}: wanted a name that ends in {', '.join(_SUFFIXES)}")
    found = _SUFFIXES[path.suffix]
    if arguments.format not in (None, found):
        raise InputError(f"-o {path} is {found}, but --format says {arguments.format}; leave one of them out")
    return found
