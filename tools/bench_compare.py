"""`lltool bench compare`: two files of results against each other."""

import argparse
import sys
from pathlib import Path

from lltool.tools.arguments import command_parser, image_file, print_json

EXAMPLES = """
lltool bench compare before.json after.json
lltool bench compare before.json after.json --limit 5% --plot change.png
lltool bench compare llama-bench.csv ours.jsonl --json
"""


def main(argv: list[str]) -> int:
    parser = command_parser(
        "bench compare",
        "Says of each test whether B is faster or slower than A, by how much, and how sure that is. Takes JSON, JSONL, "
        "CSV and SQLite of lltool bench or llama-bench. Rows are matched by what tells them apart within a file; what "
        "differs between the files as a whole is named.",
        EXAMPLES,
        json_flag=True,
    )
    parser.add_argument("a", type=Path, metavar="A", help="results to compare with")
    parser.add_argument("b", type=Path, metavar="B", help="results to judge")
    parser.add_argument(
        "--limit",
        type=_percent,
        metavar="5%",
        help="exit 1 where B is slower by more than this, and slower for sure: its interval excludes no difference",
    )
    parser.add_argument("--plot", type=image_file, metavar="FILE", help="draw the differences, .png or .svg")
    arguments = parser.parse_args(argv)

    from lltool.eval.bench.compare import compare_rows, describe, format_comparison, plot_comparison
    from lltool.eval.bench.read import read_rows

    names = (str(arguments.a), str(arguments.b))
    found = compare_rows(read_rows(arguments.a), read_rows(arguments.b))
    if arguments.json:
        print_json({"a": names[0], "b": names[1]} | describe(found, arguments.limit))
    else:
        print(format_comparison(found, names))
    if arguments.plot:
        print(plot_comparison(found, names, arguments.plot, arguments.limit), file=sys.stderr)
    if arguments.limit is None:
        return 0
    slower = found.beyond(arguments.limit)
    for difference in slower:
        print(
            f"lltool: {difference.name}: {100 * difference.change:+.1f} %, the limit is -{arguments.limit:.1%}",
            file=sys.stderr,
        )
    return 1 if slower else 0


def _percent(text: str) -> float:
    """`5%`, `5` or `2.5%`, as a fraction."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 5%")
    return value / 100
