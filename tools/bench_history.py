"""`lltool bench history`: shows the results of earlier runs of `lltool bench`."""

from pathlib import Path

from lltool.tools.arguments import (
    add_format_arguments,
    command_parser,
    image_file,
    output_to,
    positive,
    take_format,
)
from lltool.tools.parser import CommandParser

EXAMPLES = """
lltool bench history
lltool bench history --model smollm2 --test tg128 --last 5
lltool bench history --db reports/bench.sqlite --test pp512 --plot speed.svg
lltool bench history --format csv
"""


def parser() -> CommandParser:
    parser = command_parser(
        "bench history",
        "Shows the results that `lltool bench` kept, oldest first, or draws them over time.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--db", type=Path, metavar="FILE", help="the history (default ~/.cache/lltool/bench.sqlite)")
    add("--model", default="", metavar="NAME", help="only models with NAME in their name or file")
    add("--test", default="", metavar="TEST", help="only this test, such as pp512, tg128 or tg128@d4096")
    add("--last", type=positive, metavar="N", help="only the latest N results of each model, test and setting")
    add("--plot", type=image_file, metavar="FILE", help="draw speed over time, .png or .svg")
    add_format_arguments(parser, ("md", "csv", "json"), llama_bench=True)
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    take_format(arguments)

    import sys

    from lltool.eval.bench.results.history import default_database, format_history, recall
    from lltool.eval.bench.results.tables import format_rows

    path = arguments.db or default_database()
    rows = recall(path, model=arguments.model, test=arguments.test, last=arguments.last)
    with output_to(arguments.output):
        print(format_history(rows) if arguments.format == "md" else format_rows(rows, arguments.format))
    if arguments.plot:
        from lltool.eval.bench.plots.plot_history import plot_history

        print(plot_history(rows, arguments.plot), file=sys.stderr)
    return 0
