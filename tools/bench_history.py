"""`lltool bench history`: what earlier runs of `lltool bench` measured."""

from pathlib import Path

from lltool.tools.arguments import command_parser, image_file, positive

EXAMPLES = """
lltool bench history
lltool bench history --model smollm2 --test tg128 --last 5
lltool bench history --db reports/bench.sqlite --test pp512 --plot speed.svg
lltool bench history -o csv
"""


def main(argv: list[str]) -> int:
    parser = command_parser(
        "bench history",
        "Shows the results that `lltool bench` kept, oldest first, or draws them over time.",
        EXAMPLES,
        json_flag=True,
    )
    parser.add_argument("--db", type=Path, metavar="FILE", help="the history (default ~/.cache/lltool/bench.sqlite)")
    parser.add_argument("--model", default="", metavar="NAME", help="models with NAME in their name or file")
    parser.add_argument("--test", default="", metavar="TEST", help="one test, as in pp512, tg128 or tg128@d4096")
    parser.add_argument("--last", type=positive, metavar="N", help="the latest N of each model, test and setting")
    parser.add_argument("--plot", type=image_file, metavar="FILE", help="draw speed over time, .png or .svg")
    parser.add_argument("-o", "--output", choices=("md", "csv", "json"), default="md", help="format (default md)")
    arguments = parser.parse_args(argv)

    import sys

    from lltool.eval.bench.history import default_database, format_history, recall
    from lltool.eval.bench.tables import format_rows

    path = arguments.db or default_database()
    rows = recall(path, model=arguments.model, test=arguments.test, last=arguments.last)
    output = "json" if arguments.json else arguments.output
    print(format_history(rows) if output == "md" else format_rows(rows, output))
    if arguments.plot:
        from lltool.eval.bench.plot_history import plot_history

        print(plot_history(rows, arguments.plot), file=sys.stderr)
    return 0
