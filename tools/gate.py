"""`lltool gate`: records a model's results as a baseline, and checks later results against it."""

import argparse
from pathlib import Path

from lltool.tools.arguments import (
    MODEL,
    Commands,
    add_command,
    add_model_arguments,
    command_parser,
    output_file,
    positive,
    print_json,
    take_model,
    take_optional_model,
)
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note

JOB = """\
a job of GitHub Actions (.github/workflows/gate.yml), with the model kept between runs:
  on: [push, pull_request]
  jobs:
    gate:
      runs-on: ubuntu-latest
      env: {LLTOOL: "the address of lltool's repository", MODEL: "the address of the model"}
      steps:
        - uses: actions/checkout@v4
        - uses: actions/setup-python@v5
          with: {python-version: "3.11"}
        - uses: actions/cache@v4
          with: {path: models, key: models-1}
        - run: pip install "lltool @ git+$LLTOOL"
        - run: test -f models/model.gguf || curl -fLo models/model.gguf --create-dirs "$MODEL"
        - run: lltool gate check reports/baselines/model.json -m models/model.gguf
"""
RECORD_EXAMPLES = """
lltool gate record -m model.gguf -f text.txt -o reports/baselines/model.json
lltool gate record -m model.gguf -f text.txt -o model.json -c 512 --chunks 32
"""
CHECK_EXAMPLES = """
lltool gate check reports/baselines/model.json
lltool gate check reports/baselines/model.json -m build/model.gguf --speed
lltool gate check reports/baselines/model.json --json > gate.json
"""


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    return _record(arguments) if arguments.action == "record" else _check(arguments)


def parser() -> CommandParser:
    parser = command_parser(
        "gate",
        "A regression check of models and kernels, for CI: record a baseline once, commit it, and check it on every "
        "change.\nExit 0: no regression; 1: a regression; 2: an error.",
        RECORD_EXAMPLES + CHECK_EXAMPLES.lstrip(),
    )
    parser.epilog = f"{parser.epilog}\n\n{JOB}"
    commands = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    _add_record(commands)
    _add_check(commands)
    return parser


def _add_record(commands: Commands) -> None:
    help = "record a baseline: a model's results on a text and on prompts"
    parser = add_command(commands, "record", help, f"{help.capitalize()}.", RECORD_EXAMPLES)
    add_model_arguments(parser)
    add = parser.add_argument
    add("-f", "--file", type=Path, required=True, metavar="TEXT", help="text, UTF-8")
    add(
        "-o",
        "--output",
        type=output_file,
        required=True,
        metavar="FILE",
        help="name of the .json to write; an .npz goes beside it",
    )
    add("-c", "--ctx-size", type=positive, default=256, help="tokens a window (default 256)")
    add("--chunks", type=positive, default=16, help="number of windows, spread over the text (default 16)")
    add("-n", "--predict", type=positive, default=24, help="most tokens of each answer (default 24)")
    add("-t", "--threads", type=positive, help="threads (default: one a core)")


def _record(arguments: argparse.Namespace) -> int:
    from lltool.eval.gate.record import record
    from lltool.tools.progress import progress_bar

    model = take_model(arguments)
    with progress_bar("step") as progress:
        record(
            model,
            arguments.file,
            arguments.output,
            context=arguments.ctx_size,
            windows=arguments.chunks,
            answer_tokens=arguments.predict,
            threads=arguments.threads,
            progress=progress,
        )
    reference = arguments.output.with_suffix(".npz")
    note(f"wrote {arguments.output} and {reference}: commit both")
    if arguments.json:
        print_json({"baseline": str(arguments.output), "reference": str(reference), "model": str(model)})
    return 0


def _add_check(commands: Commands) -> None:
    help = "compare a model with a baseline"
    parser = add_command(
        commands,
        "check",
        help,
        "Compares a model with a baseline. A measure fails if it is worse than chance explains for a correct program.",
        CHECK_EXAMPLES,
    )
    add = parser.add_argument
    add("baseline", type=Path, metavar="BASELINE", help=".json of lltool gate record")
    add_model_arguments(parser, "[MODEL]", f"{MODEL} (default: the path at recording)")
    add("-f", "--file", type=Path, metavar="TEXT", help="text (default: the path at recording)")
    add("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    add("-t", "--threads", type=positive, help="threads (default: one a core)")
    add("--speed", action="store_true", help="fail if the model is slower, too (default: only report)")


def _check(arguments: argparse.Namespace) -> int:
    from lltool.eval.gate.check import check, format_verdict
    from lltool.tools.progress import progress_bar

    model = take_optional_model(arguments)
    with progress_bar("step") as progress:
        verdict = check(
            arguments.baseline,
            model_path=model,
            text_path=arguments.file,
            threads=arguments.threads,
            batch=arguments.batch_size,
            gate_speed=arguments.speed,
            progress=progress,
        )
    if arguments.json:
        print_json(verdict.to_json())
    else:
        print(format_verdict(verdict))
    return 0 if verdict.passed else 1
