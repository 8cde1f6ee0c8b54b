"""`lltool demo`: runs the main commands on a small model, and ends with a table, a plot and the paths of its files."""

from pathlib import Path

from lltool.tools.arguments import command_parser, print_json
from lltool.tools.parser import CommandParser

EXAMPLES = """
lltool demo
lltool demo --cache /tmp/lltool
"""


def parser() -> CommandParser:
    parser = command_parser(
        "demo",
        "Takes SmolLM2-135M-Instruct through all steps: checkpoint, GGUF, Q8_0 and Q4_0, speed, perplexity, text. "
        "A second run reuses the results of the first.",
        EXAMPLES,
        json_flag=True,
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder for its files (default .cache)")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)

    from lltool.eval.demo import QUESTIONS, run_demo
    from lltool.eval.selection.report import as_records, format_main
    from lltool.tools.progress import progress_bar

    with progress_bar("step") as show:
        demo = run_demo(arguments.cache, progress=show)
    paths = [str(path) for path in (demo.checkpoint, *(entry.path for entry in demo.entries), demo.plot)]
    if arguments.json:
        print_json({"files": as_records(demo.entries), "questions": QUESTIONS, "answers": demo.answers, "paths": paths})
        return 0
    for number, question in enumerate(QUESTIONS):
        print(f"> {question}")
        for name, answers in demo.answers.items():
            print(f"  {name:<5} {answers[number]}")
    print(f"\n{format_main(demo.entries)}\n")
    print("\n".join(paths))
    return 0
