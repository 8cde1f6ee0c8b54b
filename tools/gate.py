"""`lltool gate`: records what a model says, and tells later whether it still says it."""

import sys
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.tools.arguments import command_parser, output_file, positive, print_json

HELP = """\
usage: lltool gate record -m MODEL -f TEXT -o BASELINE.json
       lltool gate check BASELINE.json [-m MODEL] [-f TEXT]

A regression check of models and kernels, for CI: record a baseline once and commit it, check it on every change.
Exit 0: no regression; 1: a regression; 2: an error. `lltool gate record --help`, `lltool gate check --help`.

a job of GitHub Actions (.github/workflows/gate.yml), with the model kept between runs:
  on: [push, pull_request]
  jobs:
    gate:
      runs-on: ubuntu-latest
      steps:
        - uses: actions/checkout@v4
        - uses: actions/setup-python@v5
          with: {python-version: "3.11"}
        - uses: actions/cache@v4
          with: {path: models, key: models-1}
        - run: pip install lltool
        - run: test -f models/model.gguf || curl -fLo models/model.gguf --create-dirs $MODEL_URL
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
    match argv:
        case ["record", *rest]:
            return _record(rest)
        case ["check", *rest]:
            return _check(rest)
        case ["-h" | "--help"]:
            print(HELP, end="")
            return 0
    raise InputError("wanted `lltool gate record` or `lltool gate check`; see lltool gate --help")


def _record(argv: list[str]) -> int:
    parser = command_parser(
        "gate record", "Records a baseline: how a model does on a text and on prompts.", RECORD_EXAMPLES
    )
    parser.add_argument("-m", "--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("-f", "--file", type=Path, required=True, metavar="TEXT", help="text, UTF-8")
    parser.add_argument(
        "-o", "--output", type=output_file, required=True, metavar="FILE", help=".json to write, and .npz beside it"
    )
    parser.add_argument("-c", "--ctx-size", type=positive, default=256, help="tokens a window (default 256)")
    parser.add_argument(
        "--chunks", type=positive, default=16, help="windows to take, spread over the text (default 16)"
    )
    parser.add_argument("-n", "--predict", type=positive, default=24, help="tokens of each answer (default 24)")
    parser.add_argument("-t", "--threads", type=positive, help="threads (default: one a core)")
    arguments = parser.parse_args(argv)

    from lltool.eval.gate.record import record
    from lltool.tools.progress import progress_bar

    with progress_bar("step") as progress:
        record(
            arguments.model,
            arguments.file,
            arguments.output,
            context=arguments.ctx_size,
            windows=arguments.chunks,
            answer_tokens=arguments.predict,
            threads=arguments.threads,
            progress=progress,
        )
    reference = arguments.output.with_suffix(".npz")
    print(f"wrote {arguments.output} and {reference}: commit both", file=sys.stderr)
    return 0


def _check(argv: list[str]) -> int:
    parser = command_parser(
        "gate check",
        "Holds a model against a baseline. A measure fails where it is worse than honest runs are by chance.",
        CHECK_EXAMPLES,
        json_flag=True,
    )
    parser.add_argument("baseline", type=Path, metavar="BASELINE", help=".json of lltool gate record")
    parser.add_argument("-m", "--model", type=Path, help="GGUF file (default: where it was when recorded)")
    parser.add_argument("-f", "--file", type=Path, metavar="TEXT", help="text (default: where it was when recorded)")
    parser.add_argument("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    parser.add_argument("-t", "--threads", type=positive, help="threads (default: one a core)")
    parser.add_argument("--speed", action="store_true", help="fail where it is slower, too (default: report)")
    arguments = parser.parse_args(argv)

    from lltool.eval.gate.check import check, format_verdict
    from lltool.tools.progress import progress_bar

    with progress_bar("step") as progress:
        verdict = check(
            arguments.baseline,
            model_path=arguments.model,
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
