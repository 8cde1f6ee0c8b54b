"""`lltool quantize --target`: the best mix of types for a given size."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.arguments import find_named_model, folder_beside, positive, print_json

if TYPE_CHECKING:
    from lltool.eval.search.best_mix import Outcome
    from lltool.quant.plan import Request


def add_target_options(add: Callable[..., Any]) -> None:
    """Adds the options of --target to an argparse parser; `add` is its add_argument."""
    add("--target", metavar="SIZE|BPW|TYPE", help="the best mix for a size: 900MB, 4.5bpw, or the size of a TYPE")
    add("--calibration", metavar="TEXT", type=Path, help="with --target: a text like those that the model is for")
    add("--probes", metavar="FILE", type=Path, help="with --target: file for measurements (default: beside OUT)")
    add(
        "--compensate",
        metavar="N",
        type=positive,
        default=0,
        help="with --target: let rounding compensate its own errors, on N tokens of the text (8192 is good)",
    )
    add(
        "--probe-tokens", metavar="N", type=positive, default=512, help="with --target: tokens per probe (default: 512)"
    )


def quantize_to_target(positionals: Sequence[str], arguments: argparse.Namespace, request: "Request") -> int:
    """Runs `lltool quantize --target`; `positionals` are IN [OUT] [NTHREADS]."""
    from lltool.eval.common.text import read_evaluation_text
    from lltool.eval.search import best_mix
    from lltool.tools.progress import progress_bar

    target = best_mix.parse_target(arguments.target)
    name, path, threads = _read_positionals(positionals)
    if arguments.calibration is None:
        raise InputError(
            "--target needs --calibration TEXT, a text to measure on, such as the one for `lltool imatrix`"
        )
    source = find_named_model(name, offline=arguments.offline)
    if path is None and folder_beside(source) != source.parent:
        path = folder_beside(source) / best_mix.default_path(source, target).name
    outcome = best_mix.quantize_to_target(
        source,
        path,
        target,
        read_evaluation_text(arguments.calibration),
        request=request,
        probes=arguments.probes or (path or source).with_name(f"{source.stem}.probes.json"),
        tokens=arguments.probe_tokens,
        compensated=arguments.compensate,
        threads=threads,
        force=arguments.force,
        stages=lambda name: progress_bar("B" if name == "B" else name, "quantize" if name == "B" else None),
    )
    for line in _summary_lines(outcome):
        print(line, file=sys.stderr)
    if arguments.json:
        print_json(_as_json(outcome))
    else:
        print(outcome.path)
    return 0


def _read_positionals(given: Sequence[str]) -> tuple[str, Path | None, int | None]:
    rest = list(given)
    threads = int(rest.pop()) if len(rest) > 1 and rest[-1].isascii() and rest[-1].isdigit() else None
    if not 1 <= len(rest) <= 2 or threads == 0:
        raise InputError(f"found {' '.join(given)!r}, wanted IN [OUT] [NTHREADS] with --target, and no TYPE")
    return rest[0], Path(rest[1]) if len(rest) == 2 else None, threads


def _summary_lines(outcome: "Outcome") -> list[str]:
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
    lines.append(f"{size:,} of {outcome.budget:,} bytes ({outcome.plan.bits_per_weight:.3f} bits a weight)")
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
