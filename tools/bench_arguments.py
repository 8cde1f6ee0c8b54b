"""The command line of `lltool bench`: llama-bench's options with their lists and ranges, and some more."""

import argparse
import re
from pathlib import Path

from lltool.eval.bench.option_values import parse_counts
from lltool.eval.bench.settings import SETTINGS, WORKLOAD, Setting
from lltool.eval.common.quantities import parse_percent
from lltool.gguf.errors import InputError
from lltool.tools.arguments import (
    MODEL,
    add_format_arguments,
    add_model_arguments,
    checked,
    command_parser,
    image_file,
    pictures_place,
    positive,
    take_format,
)
from lltool.tools.engine_arguments import priority
from lltool.tools.parser import CommandParser

EXAMPLES = """
lltool bench model.gguf
lltool bench -m a.gguf,b.gguf -p 128,512 -n 32,128 -t 1-4 --format csv
lltool bench -m model.gguf -p 512 -n 0 -ub 64-512*2 -d 0,4096 --until 2% --plot speed.png
lltool bench -m model.gguf -p 128 -n 32 -npl 1,2,4,8
lltool bench -m model.gguf --peer transformers --peer llama-cpp-python:/opt/venv/bin/python --peer llama-bench:PATH
lltool bench -m model.gguf -p 512 -n 128 --profile --plot profile.png
lltool bench -m model.gguf --autotune
lltool bench --through http://127.0.0.1:8080 -p 512 -n 128
lltool bench --clients 1,8,32 --through ours=http://127.0.0.1:8080 --peer theirs=http://127.0.0.1:9090 --save load
lltool bench -m model.gguf --format sql | sqlite3 results.sqlite
lltool bench compare before.json after.json
lltool bench history --test tg128 --last 10
"""
NOTE = """\
Each test parameter takes lists (1,2,4) and ranges of numbers (1-8, 1-8+2, 1-64*2), and can be given several times. All
combinations are measured in turns. Settings that this build does not support are an error before anything runs."""
_MOST_CLIENTS = 1000
FORMATS = ("md", "csv", "json", "jsonl", "sql")


def parser() -> CommandParser:
    parser = command_parser(
        "bench",
        "Measures prefill (pp) and generation (tg) on random tokens, with llama-bench's options and columns.\n" + NOTE,
        EXAMPLES,
        most_used="-m -hf -p -n -pg -d -npl -t -r --until --peer --through --clients --profile -o --plot --json -q",
    )
    add_model_arguments(parser, "MODEL...", f"{MODEL}; several are measured in turns")
    tests = parser.add_argument_group("test parameters")
    add = tests.add_argument
    for workload in WORKLOAD:
        _add(tests, workload, workload.column, "N")
    add(
        "-pg",
        type=_pair,
        action="append",
        default=[],
        metavar="PP,TG",
        help="a prompt and then generation, timed together",
    )
    for setting in SETTINGS:
        _add(tests, setting, setting.name, "X")
    add = parser.add_argument_group("how much").add_argument
    add("-r", "--repetitions", type=positive, default=5, metavar="N", help="runs of each test (default 5)")
    add("--until", type=checked(_until), metavar="2%", help="repeat until the interval is ± at most this percentage")
    add("--max-time", type=positive, default=600, metavar="S", help="limit for repeating, in seconds (default 600)")
    add("--delay", type=_seconds, default=0.0, metavar="S", help="pause before each run, in seconds (default 0)")
    add("--prio", type=priority, default=0, metavar="-1...3", help="priority of the process (default 0)")
    add("--no-warmup", action="store_true", help="time the first run as well")
    add(
        "--no-memory",
        action="store_true",
        help="do not measure memory and load times, which take one more run of each test",
    )
    add(
        "--profile",
        action="store_true",
        help="instead: show the time of each operation and its fraction of the machine's limit",
    )
    add(
        "--autotune",
        action="store_true",
        help="instead: find the best -t and -tb for models of this size, and keep them",
    )
    add("--peer", action="append", default=[], metavar="NAME", help="another engine to run in turns")
    add = parser.add_argument_group("through a server").add_argument
    add(
        "--through",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="instead: run the tests through an OpenAI-compatible server; others, also with --peer, in turns with it",
    )
    add("--clients", type=checked(_clients), metavar="N,...", help="so many clients at once (default 1)")
    add(
        "--long-prompt",
        type=positive,
        default=0,
        metavar="N",
        help="meanwhile, another client sends prompts of N tokens",
    )
    add("--api-key", metavar="KEY", help="the key that the servers want")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add_format_arguments(output, FORMATS, llama_bench=True)
    add("-oe", "--output-err", choices=FORMATS, help="format to print on stderr as well")
    add("--plot", type=image_file, metavar="FILE", help="draw a picture, .png or .svg")
    add("--save", type=pictures_place, metavar="STEM", help="write STEM.csv, STEM.json and a picture, STEM.png")
    add("--db", type=Path, metavar="FILE", help="history to add results to (~/.cache/lltool/bench.sqlite)")
    add("--no-history", action="store_true", help="do not keep the results")
    add("--progress", action="store_true", help="print a line on stderr before each run")
    add("--strict", action="store_true", help="fail if something that was asked for is not available")
    return parser


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The parsed options; those of SETTINGS are None unless given. Raises InputError for bad ones."""
    arguments = parser().parse_args(argv)
    take_format(arguments)
    if arguments.quiet and arguments.output_err:
        raise InputError("-oe prints on stderr, which -q silences; leave one of them out")
    return arguments


def _add(group: argparse._ArgumentGroup, setting: Setting, name: str, metavar: str) -> None:
    """Adds the options of a setting; their values, None unless given, are stored under `name`."""
    type = checked(setting.parse)
    group.add_argument(*setting.options, dest=name, type=type, action="extend", metavar=metavar, help=setting.help)


def _pair(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9}),(\d{1,9})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pair of numbers like 512,128")
    return int(match[1]), int(match[2])


def _clients(text: str) -> list[int]:
    found = parse_counts(text)
    if not 1 <= min(found) <= max(found) <= _MOST_CLIENTS:
        raise InputError(f"{text!r}: wanted numbers of clients from 1 to {_MOST_CLIENTS}")
    return found


def _until(text: str) -> float:
    """A percentage above 0. Bare numbers below 1, which once were fractions of 1, are refused."""
    value = parse_percent(text)
    if not value or (value < 0.01 and not text.endswith("%")):
        raise InputError(f"{text!r} is not a percentage such as 2% or 2; below 1 % it needs its sign")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value
