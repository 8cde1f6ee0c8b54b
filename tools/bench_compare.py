"""`lltool bench compare`: compares two files of results."""

import sys
from pathlib import Path

from lltool.eval.common.quantities import parse_percent
from lltool.tools.arguments import checked, command_parser, image_file, print_json
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note

EXAMPLES = """
lltool bench compare before.json after.json
lltool bench compare before.json after.json --limit 5% --plot change.png
lltool bench compare llama-bench.csv ours.jsonl --json
"""


def parser() -> CommandParser:
    parser = command_parser(
        "bench compare",
        "Says for each test whether B is faster or slower than A, by how much, and with which confidence interval. "
        "Takes JSON, JSONL, CSV and SQLite of lltool bench or llama-bench. Rows are matched by the settings that vary "
        "within a file; settings that differ only between the files are reported.",
        EXAMPLES,
        json_flag=True,
    )
    parser.add_argument("a", type=Path, metavar="A", help="results of the baseline")
    parser.add_argument("b", type=Path, metavar="B", help="results to compare with it")
    parser.add_argument(
        "--limit",
        type=checked(parse_percent),
        metavar="5%",
        help="exit 1 if B is slower by more than this percentage in some test and the confidence interval excludes 0",
    )
    parser.add_argument("--plot", type=image_file, metavar="FILE", help="draw the differences, .png or .svg")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)

    from lltool.eval.bench.results.compare import compare_rows, comparison_to_json, format_comparison, plot_comparison
    from lltool.eval.bench.results.read import read_rows

    names = (str(arguments.a), str(arguments.b))
    found = compare_rows(read_rows(arguments.a), read_rows(arguments.b))
    if arguments.json:
        print_json({"a": names[0], "b": names[1]} | comparison_to_json(found, arguments.limit))
    else:
        print(format_comparison(found, names))
    if arguments.plot:
        print(plot_comparison(found, names, arguments.plot, arguments.limit), file=sys.stderr)
    if arguments.limit is None:
        return 0
    slower = found.beyond(arguments.limit)
    for difference in slower:
        note(f"{difference.name}: {100 * difference.change:+.1f} %, the limit is -{arguments.limit:.1%}")
    return 1 if slower else 0
