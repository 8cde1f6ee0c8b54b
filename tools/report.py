"""`lltool report`: a page with tables and plots from a folder of results."""

from pathlib import Path

from lltool.tools.arguments import command_parser, print_json
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note

EXAMPLES = """
lltool perplexity -m model-Q4_0.gguf --reference model-F16.gguf -f text.txt --json > results/q4_0.json
lltool bench -m model-F16.gguf,model-Q4_0.gguf --json > results/bench.json
lltool report results -o report.html
"""


def parser() -> CommandParser:
    parser = command_parser(
        "report",
        "Makes one page from the results in DIR: JSON files of `lltool perplexity`, `bench` and `quantize`. Prints the "
        "table, and writes a self-contained FILE.html with .md, .csv and .png files beside it.",
        EXAMPLES,
        json_flag=True,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder with results")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the page (default: DIR/report.html)")
    parser.add_argument("--title", default="Which quantization to take", help="title of the page")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)

    from lltool.eval.selection.report import as_records, format_main, write_report
    from lltool.eval.selection.runs import read_runs

    runs = read_runs(arguments.folder)
    written = write_report(runs, arguments.output or arguments.folder / "report.html", arguments.title)
    for text in runs.notes:
        note(text)
    if arguments.json:
        print_json({"files": as_records(runs.entries), "notes": runs.notes, "paths": [str(path) for path in written]})
        return 0
    print(format_main(runs.entries))
    print()
    for path in written:
        print(path)
    return 0
