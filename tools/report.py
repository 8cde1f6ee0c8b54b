"""`lltool report`: results in a folder as one page with tables and plots."""

import sys
from pathlib import Path

from lltool.tools.arguments import command_parser, printable

EXAMPLES = """
lltool perplexity -m model-Q4_0.gguf --reference model-F16.gguf -f text.txt --json > results/q4_0.json
lltool bench -m model-F16.gguf,model-Q4_0.gguf -o json > results/bench.json
lltool report results -o report.html
"""


def main(argv: list[str]) -> int:
    parser = command_parser(
        "report",
        "Makes one page of the results in DIR: JSON of `lltool perplexity`, `bench` and `quantize`, by any name. "
        "Prints the table; writes FILE.html, which needs nothing else, and .md, .csv and .png beside it.",
        EXAMPLES,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder with results")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the page (default: DIR/report.html)")
    parser.add_argument("--title", default="Which quantization to take", help="of the page")
    arguments = parser.parse_args(argv)

    from lltool.eval.report import format_main, write_report
    from lltool.eval.runs import read_runs

    runs = read_runs(arguments.folder)
    written = write_report(runs, arguments.output or arguments.folder / "report.html", arguments.title)
    print(format_main(runs.entries))
    print()
    for note in runs.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    for path in written:
        print(path)
    return 0
