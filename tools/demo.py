"""`lltool demo`: every command's work on a small model, ending in a table, a plot and the paths of what it made."""

from pathlib import Path

from lltool.tools.arguments import command_parser

EXAMPLES = """
lltool demo
lltool demo --cache /tmp/lltool
"""


def main(argv: list[str]) -> int:
    parser = command_parser(
        "demo",
        "Takes SmolLM2-135M-Instruct the whole way: checkpoint, GGUF, Q8_0 and Q4_0, speed, perplexity, text. "
        "A second run reuses what the first one made.",
        EXAMPLES,
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder of what it makes (default .cache)")
    arguments = parser.parse_args(argv)

    from lltool.eval.demo import QUESTIONS, run_demo
    from lltool.eval.report import format_main
    from lltool.tools.progress import progress_bar

    with progress_bar("step") as show:
        demo = run_demo(arguments.cache, progress=show)
    for number, question in enumerate(QUESTIONS):
        print(f"> {question}")
        for name, answers in demo.answers.items():
            print(f"  {name:<5} {answers[number]}")
    print(f"\n{format_main(demo.entries)}\n")
    for path in (demo.checkpoint, *(entry.path for entry in demo.entries), demo.plot):
        print(path)
    return 0
