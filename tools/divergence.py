"""The part of `lltool perplexity` that compares a model with another one, or writes a file for a later comparison."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.eval.common.quantities import format_size
from lltool.gguf.errors import InputError
from lltool.tools.arguments import find_named_model, output_file, output_to, positive, print_json
from lltool.tools.engine_arguments import engine_options

if TYPE_CHECKING:
    from lltool.eval.divergence.divergence import DivergenceResult

EXAMPLES = """
lltool perplexity -m Q4_K_M.gguf --reference F16.gguf -f text.txt --worst 10
lltool perplexity -m F16.gguf -f text.txt --chunks 20 --write-reference f16.npz
lltool perplexity -m Q4_K_M.gguf --reference f16.npz
lltool perplexity -m F16.gguf -f text.txt --kl-divergence-base logits.bin
lltool perplexity -m Q4_K_M.gguf --kl-divergence-base logits.bin --kl-divergence
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("divergence from another model").add_argument
    add(
        "--reference",
        metavar="BASE",
        help="the model that -m was made from, which runs in lockstep with it; or a file made with --write-reference "
        "or --kl-divergence-base, which needs no text",
    )
    add("--worst", type=positive, metavar="N", help="show the N tokens with the largest divergence")
    add(
        "--write-reference",
        type=output_file,
        metavar="FILE",
        help="write the predictions of -m: the likely tokens at each scored position and the mass of the rest",
    )
    add("--top-tokens", type=positive, metavar="K", help="number of tokens that --write-reference keeps (default 64)")
    add(
        "--kl-divergence-base",
        "--save-all-logits",
        type=Path,
        metavar="FILE",
        help="write llama-perplexity's file of all probabilities in 16 bits; with --kl-divergence, read it",
    )
    add("--kl-divergence", action="store_true", help="measure the divergence from that file")


def is_wanted(arguments: argparse.Namespace) -> bool:
    names = ("reference", "write_reference", "kl_divergence_base", "worst", "top_tokens")
    return arguments.kl_divergence or any(getattr(arguments, name) is not None for name in names)


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    if arguments.reference is not None:
        arguments.reference = find_named_model(arguments.reference, offline=arguments.offline)
    base = arguments.kl_divergence_base if arguments.kl_divergence else arguments.reference
    return _compare(arguments, base) if base else _write(arguments)


def _check(arguments: argparse.Namespace) -> None:
    """Raises InputError for arguments that cannot be used together."""
    given = {
        "--reference": arguments.reference,
        "--write-reference": arguments.write_reference,
        "--kl-divergence-base": arguments.kl_divergence_base,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)} cannot be used together")
    if arguments.kl_divergence and not arguments.kl_divergence_base:
        raise InputError("--kl-divergence: give the base model's file with --kl-divergence-base")
    compares = arguments.reference or arguments.kl_divergence
    if arguments.worst and not compares:
        raise InputError("--worst goes with --reference or --kl-divergence")
    if arguments.top_tokens and not arguments.write_reference:
        raise InputError("--top-tokens goes with --write-reference")
    if arguments.method not in (None, "llama") or arguments.stride or arguments.score != "half" or arguments.losses:
        raise InputError("--method, --stride, --score and --losses do not apply to a divergence; leave them out")
    if not compares and len(arguments.file) != 1:
        raise InputError(f"-f: {len(arguments.file)} texts, wanted one for {names[0]}")


def _settings(arguments: argparse.Namespace, context: int) -> dict[str, Any]:
    return {
        "context": context,
        "sequences": max(1, arguments.batch_size // context),
        "batch": arguments.batch_size,
        "precision": arguments.precision,
        **engine_options(arguments),
    }


def _compare(arguments: argparse.Namespace, path: Path) -> int:
    from lltool.engine.model import Model, load_model
    from lltool.eval.common.text import read_evaluation_text
    from lltool.eval.divergence import comparison
    from lltool.eval.divergence import summary as divergence_summary
    from lltool.eval.divergence.worst import format_worst, worst_positions
    from lltool.eval.scoring.perplexity import Method

    texts: dict[Path | None, str | None] = {file: read_evaluation_text(file) for file in arguments.file} or {None: None}
    with ExitStack() as stack:
        # Adapters belong to the model that is compared, so that what they change can be measured.
        base = comparison.open_base(path, **_settings(arguments, arguments.ctx_size) | {"lora": []})
        context = arguments.ctx_size
        if isinstance(base, Model):
            stack.enter_context(base)
        else:
            context = base.context
            if len(texts) > 1:
                raise InputError(f"-f: {len(texts)} texts, but {path} was made from one")
        model = stack.enter_context(load_model(arguments.model, **_settings(arguments, context)))
        results, worst = {}, {}
        for file, text in texts.items():
            name = str(file or path)
            print(f"{name}: {Method(context=context)}", divergence_summary.RUNNING_HEADER, sep="\n\n", file=sys.stderr)
            results[file] = comparison.compare_text(
                base, model, text, context=context, chunks=arguments.chunks, name=name, progress=_RunningLines()
            )
            worst[file] = worst_positions(results[file], base, model, arguments.worst or 0)
        with output_to(arguments.output):
            if arguments.format in ("json", "csv"):
                records = [comparison.to_record(results[file], base, model, file, worst[file]) for file in texts]
                if arguments.format == "csv":
                    print(comparison.format_csv(records))
                else:
                    print_json(records if len(records) > 1 else records[0])
                return 0
            if arguments.format == "md" or len(texts) > 1:
                print(comparison.format_texts({str(file or path): result for file, result in results.items()}))
            else:
                for result in results.values():
                    print(*divergence_summary.report_lines(divergence_summary.summarize_divergence(result)), sep="\n")
            for file, positions in worst.items():
                if positions:
                    print(f"\n{file or path}, the largest divergences:\n", format_worst(positions), sep="\n")
    return 0


class _RunningLines:
    """Prints llama-perplexity's line for each chunk as it is done."""

    def __init__(self) -> None:
        self._shown = 0

    def __call__(self, done: int, total: int, result: "DivergenceResult") -> None:
        from lltool.eval.divergence.summary import running_line

        for chunk in range(self._shown + 1, done + 1):
            print(running_line(chunk, result.first(chunk)), file=sys.stderr, flush=True)
        self._shown = done


def _write(arguments: argparse.Namespace) -> int:
    from lltool.engine.model import load_model
    from lltool.eval.common.text import read_evaluation_text
    from lltool.eval.divergence.logits_file import write_logits_file
    from lltool.eval.divergence.reference_file import TOP, write_reference
    from lltool.eval.scoring.perplexity import Method, bos_of, cut_windows, perplexity_of
    from lltool.gguf.digest import sha256_of
    from lltool.gguf.whole_file import check_output
    from lltool.tools.progress import progress_bar

    (file,) = arguments.file
    path: Path = arguments.kl_divergence_base or arguments.write_reference
    check_output(path, (arguments.model, file))
    text = read_evaluation_text(file)
    context, chunks = arguments.ctx_size, arguments.chunks
    with (
        load_model(arguments.model, **_settings(arguments, context)) as model,
        progress_bar("chunk", "writing") as progress,
    ):
        ids = Method(context=context).encode(model.tokenizer, text)
        if arguments.kl_divergence_base:
            scores = write_logits_file(
                path, model, ids, context=context, chunks=chunks, name=str(file), progress=progress
            )
        else:
            windows = cut_windows(ids, context, bos_of(model), str(file))[:chunks]
            sources = {"text": file.name, "text_sha256": sha256_of([file])}
            top = arguments.top_tokens or TOP
            scores = write_reference(path, model, windows, top=top, sources=sources, progress=progress)
    perplexity, error = perplexity_of(scores)
    report = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "scored_tokens": len(scores),
        "perplexity": perplexity,
        "standard_error": error,
    }
    with output_to(arguments.output):
        if arguments.format == "json":
            print_json(report)
        else:
            print(f"Final estimate: PPL = {perplexity:.4f} +/- {error:.5f}")
            print(f"{path}: {format_size(path.stat().st_size)}, {len(scores)} scored tokens")
    return 0
