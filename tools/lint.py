"""`lltool lint`: looks for mistakes in a GGUF file."""

import shlex

from lltool.tools.arguments import add_model_arguments, command_parser, print_json, take_model
from lltool.tools.parser import CommandParser
from lltool.tools.terminal import printable

EXAMPLES = """
lltool lint model.gguf
lltool lint model.gguf --no-values --json
"""


def parser() -> CommandParser:
    parser = command_parser(
        "lint",
        "Looks for mistakes in a GGUF file: special tokens, chat template, tokenizer, tensors, context, types. "
        "Each finding comes with the command that cures it, if there is one. The exit code is 1 if there are errors.",
        EXAMPLES,
        json_flag=True,
    )
    add_model_arguments(parser)
    parser.add_argument("--no-values", action="store_true", help="do not read the weights, which takes longest")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    arguments.model = take_model(arguments)

    from lltool.engine.lint.check import lint
    from lltool.engine.lint.finding import SEVERITIES
    from lltool.gguf.reader import open_gguf
    from lltool.tools.progress import progress_bar

    with open_gguf(arguments.model) as file, progress_bar("B", file.path.name) as progress:
        findings = lint(file, values=not arguments.no_values, progress=progress)
    cures = [shlex.join(["lltool", "set", str(arguments.model), *f.cure]) if f.cure else None for f in findings]
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    if arguments.json:
        rows = [
            {"severity": f.severity, "check": f.check, "found": f.found, "why": f.why, "cure": cure}
            for f, cure in zip(findings, cures, strict=True)
        ]
        print_json({"model": str(arguments.model), "counts": counts, "findings": rows})
    else:
        for finding, cure in zip(findings, cures, strict=True):
            print(f"{finding.severity}: {finding.check}: {printable(finding.found)}")
            print(f"  {printable(finding.why)}")
            if cure:
                print(f"  $ {printable(cure)}")
        print(", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in counts.items()))
    return 1 if counts["error"] else 0
