"""The part of `lltool perplexity` that holds a model against another one, or writes a file to do so later."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.arguments import output_file, positive, print_json
from lltool.tools.engine_arguments import engine_options

if TYPE_CHECKING:
    from lltool.eval.divergence import DivergenceResult

EXAMPLES = """
lltool perplexity -m Q4_K_M.gguf --reference F16.gguf -f text.txt --worst 10
lltool perplexity -m F16.gguf -f text.txt --chunks 20 --write-reference f16.npz
lltool perplexity -m Q4_K_M.gguf --reference f16.npz
lltool perplexity -m F16.gguf -f text.txt --kl-divergence-base logits.bin
lltool perplexity -m Q4_K_M.gguf --kl-divergence-base logits.bin --kl-divergence
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("divergence from another model")
    group.add_argument(
        "--reference",
        type=Path,
        metavar="BASE",
        help="the model that -m was made of, run in step with it; or a file of --write-reference or "
        "--kl-divergence-base, which needs no text",
    )
    group.add_argument("--worst", type=positive, metavar="N", help="show the N tokens of largest divergence")
    group.add_argument(
        "--write-reference",
        type=output_file,
        metavar="FILE",
        help="write what -m says of the text: at each scored token the likely ones and the mass of the rest",
    )
    group.add_argument(
        "--top-tokens", type=positive, metavar="K", help="likely tokens that --write-reference keeps (default 64)"
    )
    group.add_argument(
        "--kl-divergence-base",
        "--save-all-logits",
        type=Path,
        metavar="FILE",
        help="write llama-perplexity's file of all probabilities in 16 bits; with --kl-divergence read it",
    )
    group.add_argument("--kl-divergence", action="store_true", help="divergence from that file, as llama-perplexity")


def is_wanted(arguments: argparse.Namespace) -> bool:
    names = ("reference", "write_reference", "kl_divergence_base", "worst", "top_tokens")
    return arguments.kl_divergence or any(getattr(arguments, name) is not None for name in names)


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    base = arguments.kl_divergence_base if arguments.kl_divergence else arguments.reference
    return _compare(arguments, base) if base else _write(arguments)


def _check(arguments: argparse.Namespace) -> None:
    """Raises InputError for arguments that do not go together."""
    given = {
        "--reference": arguments.reference,
        "--write-reference": arguments.write_reference,
        "--kl-divergence-base": arguments.kl_divergence_base,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{' with '.join(names)}: wanted one of them")
    if arguments.kl_divergence and not arguments.kl_divergence_base:
        raise InputError("--kl-divergence: give the base model's file with --kl-divergence-base")
    compares = arguments.reference or arguments.kl_divergence
    if arguments.worst and not compares:
        raise InputError("--worst goes with --reference or --kl-divergence")
    if arguments.top_tokens and not arguments.write_reference:
        raise InputError("--top-tokens goes with --write-reference")
    if arguments.method not in (None, "llama") or arguments.stride or arguments.score != "half" or arguments.losses:
        raise InputError("--method, --stride, --score and --losses are of a model alone; leave them out")
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
    from lltool.eval import comparison, divergence_summary
    from lltool.eval.perplexity import Method
    from lltool.eval.text import read_text
    from lltool.eval.worst import format_worst, worst_positions

    texts: dict[Path | None, str | None] = {file: read_text(file) for file in arguments.file} or {None: None}
    with ExitStack() as stack:
        base = comparison.open_base(path, **_settings(arguments, arguments.ctx_size))
        context = arguments.ctx_size
        if isinstance(base, Model):
            stack.enter_context(base)
        else:
            context = base.context
            if len(texts) > 1:
                raise InputError(f"-f: {len(texts)} texts, but {path} is of one")
        model = stack.enter_context(load_model(arguments.model, **_settings(arguments, context)))
        results, worst = {}, {}
        for file, text in texts.items():
            name = str(file or path)
            print(f"{name}: {Method(context=context)}", divergence_summary.RUNNING_HEADER, sep="\n\n", file=sys.stderr)
            results[file] = comparison.compare_text(
                base, model, text, context=context, chunks=arguments.chunks, name=name, progress=_RunningLines()
            )
            worst[file] = worst_positions(results[file], base, model, arguments.worst or 0)
        if arguments.output in ("json", "csv"):
            records = [comparison.to_record(results[file], base, model, file, worst[file]) for file in texts]
            if arguments.output == "csv":
                print(comparison.format_csv(records))
            else:
                print_json(records if len(records) > 1 else records[0])
            return 0
        if arguments.output == "md" or len(texts) > 1:
            print(comparison.format_texts({str(file or path): result for file, result in results.items()}))
        else:
            for result in results.values():
                print(*divergence_summary.report_lines(divergence_summary.summarize(result)), sep="\n")
        for file, positions in worst.items():
            if positions:
                print(f"\n{file or path}, the largest divergences:\n", format_worst(positions), sep="\n")
    return 0


class _RunningLines:
    """Prints llama-perplexity's line for each chunk as it is done."""

    def __init__(self) -> None:
        self._shown = 0

    def __call__(self, done: int, total: int, result: "DivergenceResult") -> None:
        from lltool.eval.divergence_summary import running_line

        for chunk in range(self._shown + 1, done + 1):
            print(running_line(chunk, result.first(chunk)), file=sys.stderr, flush=True)
        self._shown = done


def _write(arguments: argparse.Namespace) -> int:
    from lltool.engine.model import load_model
    from lltool.eval.divergence_summary import perplexity_of
    from lltool.eval.logits_file import write_logits_file
    from lltool.eval.perplexity import Method, bos_of, cut_windows
    from lltool.eval.reference_file import TOP, write_reference
    from lltool.eval.text import read_text
    from lltool.gguf.digest import sha256_of
    from lltool.tools.progress import progress_bar

    (file,) = arguments.file
    text = read_text(file)
    context, chunks = arguments.ctx_size, arguments.chunks
    with (
        load_model(arguments.model, **_settings(arguments, context)) as model,
        progress_bar("chunk", "writing") as progress,
    ):
        ids = Method(context=context).encode(model.tokenizer, text)
        if arguments.kl_divergence_base:
            path = arguments.kl_divergence_base
            scores = write_logits_file(
                path, model, ids, context=context, chunks=chunks, name=str(file), progress=progress
            )
        else:
            path = arguments.write_reference
            windows = cut_windows(ids, context, bos_of(model), str(file))[:chunks]
            sources = {"text": file.name, "text_sha256": sha256_of([file])}
            top = arguments.top_tokens or TOP
            scores = write_reference(path, model, windows, top=top, sources=sources, progress=progress)
    perplexity = perplexity_of(scores)
    report = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "scored_tokens": len(scores),
        "perplexity": perplexity.value,
        "standard_error": perplexity.error,
    }
    if arguments.output == "json":
        print_json(report)
    else:
        print(f"Final estimate: PPL = {perplexity.value:.4f} +/- {perplexity.error:.5f}")
        print(f"{path}: {report['bytes']} bytes, {len(scores)} scored tokens")
    return 0
