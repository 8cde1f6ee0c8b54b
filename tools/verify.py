"""`lltool verify`: tells whether a GGUF file computes what its checkpoint computes in transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lltool.tools.arguments import (
    add_format_arguments,
    command_parser,
    find_named_model,
    output_to,
    positive,
    print_json,
)
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note

if TYPE_CHECKING:
    from lltool.eval.verify.verify import Verdict

EXAMPLES = """
lltool verify SmolLM2-135M-Instruct-BF16.gguf ./SmolLM2-135M-Instruct
lltool verify --stamp --json qwen3.gguf Qwen/Qwen3-0.6B
"""


def parser() -> CommandParser:
    from lltool.eval.verify.verify import LONG_TOKENS

    parser = command_parser(
        "verify",
        "Compares a GGUF file with the checkpoint that it was made from, as transformers runs it: tokenizer, chat "
        "template, each block and the logits. The exit code is 1 if anything differs by more than rounding.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="the GGUF file")
    add("checkpoint", metavar="DIR_OR_ID", help="the checkpoint's folder, or its id on the Hub")
    add("--stamp", action="store_true", help="write the verdict into the file's metadata")
    help = f"tokens of the long prompt (default {LONG_TOKENS})"
    add("-n", "--tokens", type=positive, default=LONG_TOKENS, metavar="N", help=help)
    help = "read the checkpoint layer by layer (default: if it does not fit in memory); needs accelerate"
    add("--layer-by-layer", action="store_true", default=None, help=help)
    add_format_arguments(parser, ("text", "json"))
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    with output_to(arguments.output):
        return verify_and_print(
            find_named_model(arguments.model),
            arguments.checkpoint,
            tokens=arguments.tokens,
            by_layer=arguments.layer_by_layer,
            stamps=arguments.stamp,
            as_json=arguments.format == "json",
        )


def verify_and_print(
    model: Path,
    checkpoint: str,
    *,
    tokens: int | None = None,
    by_layer: bool | None = None,
    stamps: bool = False,
    as_json: bool = False,
) -> int:
    """Verifies a file, prints the report and returns the exit code."""
    from lltool.eval.verify.verify import LONG_TOKENS, stamp, verify
    from lltool.tools.progress import progress_bar

    with progress_bar("stages", "verify") as show:
        verdict = verify(model, checkpoint, tokens=tokens or LONG_TOKENS, by_layer=by_layer, progress=show)
    for text in verdict.notes:
        note(text)
    if stamps:
        stamp(verdict)
    if as_json:
        print_json(verdict.as_json())
    else:
        print("\n".join(report_lines(verdict)))
    return 1 if verdict.differences else 0


def report_lines(verdict: "Verdict") -> Iterator[str]:
    """The report as a table of stages, the logits, and the verdict."""
    from lltool.eval.common.tables import align_columns

    rows = [("stage", "error", "limit", "drift", "")]
    for stage in verdict.stages:
        mark = "departs" if stage.departs else ""
        rows.append((stage.name, f"{stage.error:.2e}", f"{stage.limit:.2e}", f"{stage.drift:.2e}", mark))
    for row in align_columns(rows, left=[True, False, False, False, True]):
        yield "  ".join(row).rstrip()
    logits = verdict.logits
    yield (
        f"logits of {logits.tokens} tokens: NMSE {logits.nmse:.2e}, KL divergence {logits.divergence:.2e} nats, "
        f"top-1 {logits.top1:.2%}, top-5 {logits.top5:.2%} the same"
    )
    yield from verdict.differences or ["the same: tokenizer, chat template and every stage"]
