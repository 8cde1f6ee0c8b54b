"""`lltool quantize --target`: the best mix of types for so many bytes."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.arguments import positive, print_json

if TYPE_CHECKING:
    from lltool.eval.best_mix import Outcome
    from lltool.quant.plan import Request


def add_target_options(add: Callable[..., Any]) -> None:
    """Options of an argparse parser; `add` is its add_argument."""
    add("--target", metavar="SIZE|BPW|TYPE", help="the best mix in so many bytes: 900MB, 4.5bpw, or as large as a TYPE")
    add("--calibration", metavar="TEXT", type=Path, help="with --target: a text like those the model is for")
    add("--probes", metavar="FILE", type=Path, help="with --target: where measurements are kept (default: beside OUT)")
    add(
        "--compensate",
        metavar="N",
        type=positive,
        default=0,
        help="with --target: let rounding make up for its own errors, on N tokens of the text (8192 is good)",
    )
    add("--probe-tokens", metavar="N", type=positive, default=512, help="with --target: tokens a probe (default: 512)")


def quantize_to_target(positionals: Sequence[str], arguments: argparse.Namespace, request: "Request") -> int:
    """`positionals` are IN [OUT] [NTHREADS]."""
    from lltool.eval import best_mix
    from lltool.eval.text import read_text
    from lltool.tools.progress import progress_bar

    target = best_mix.parse_target(arguments.target)
    source, path, threads = _read_positionals(positionals, arguments.target)
    if arguments.calibration is None:
        raise InputError("--target needs --calibration TEXT, a text to measure on; like the one for `lltool imatrix`")
    outcome = best_mix.quantize_to_target(
        source,
        path,
        target,
        read_text(arguments.calibration),
        request=request,
        probes=arguments.probes or path.with_name(f"{source.stem}.probes.json"),
        tokens=arguments.probe_tokens,
        compensated=arguments.compensate,
        threads=threads,
        stages=lambda name: progress_bar("B" if name == "B" else name, "quantize" if name == "B" else None),
    )
    for line in _describe(outcome):
        print(line, file=sys.stderr)
    if arguments.json:
        print_json(_as_json(outcome))
    else:
        print(outcome.path)
    return 0


def _read_positionals(given: Sequence[str], target: str) -> tuple[Path, Path, int | None]:
    rest = list(given)
    threads = int(rest.pop()) if len(rest) > 1 and rest[-1].isascii() and rest[-1].isdigit() else None
    if not 1 <= len(rest) <= 2 or threads == 0:
        raise InputError(f"{len(given)} arguments, wanted IN [OUT] [NTHREADS] with --target, and no TYPE")
    source = Path(rest[0])
    return source, Path(rest[1]) if len(rest) == 2 else source.with_name(f"{source.stem}-{target}.gguf"), threads


def _describe(outcome: "Outcome") -> list[str]:
    counts = Counter(type.name for type in outcome.mix.types.values())
    mix = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    lines = [f"best mix: {mix}; expected divergence {outcome.mix.predicted:.4f} nats a token"]
    if outcome.verdict:
        verdict = outcome.verdict
        lines.append(
            f"on held-out text it diverges by {verdict.mix.mean:.4f}, plain {outcome.rival} by "
            f"{verdict.plain.mean:.4f}: {verdict.gain:+.4f} ± {verdict.error:.4f} better"
            + ("" if outcome.kept else f"; not better, so the file is plain {outcome.rival}")
        )
    else:
        lines.append("no plain recipe is as small, so there is nothing to compare it with")
    size = outcome.path.stat().st_size
    lines.append(f"{size} bytes of {outcome.budget} ({outcome.plan.bits_per_weight:.3f} bits a weight)")
    if outcome.recipe_path:
        lines.append(f"its recipe: {outcome.recipe_path}")
    return lines


def _as_json(outcome: "Outcome") -> dict[str, Any]:
    verdict = outcome.verdict
    return {
        "path": str(outcome.path),
        "recipe": None if outcome.recipe_path is None else str(outcome.recipe_path),
        "budget": outcome.budget,
        "bytes": outcome.path.stat().st_size,
        "bits_per_weight": outcome.plan.bits_per_weight,
        "kept_mix": outcome.kept,
        "expected_divergence": outcome.mix.predicted,
        "plain": outcome.rival,
        "divergence": verdict and verdict.mix.mean,
        "divergence_plain": verdict and verdict.plain.mean,
        "gain": verdict and verdict.gain,
        "gain_error": verdict and verdict.error,
        "types": {choice.tensor.name: choice.type.name for choice in outcome.plan.choices},
    }
