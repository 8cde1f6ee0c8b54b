"""`lltool imatrix`: importance of weights for quantizing, from a model and a text."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.arguments import command_parser, positive, print_json, printable
from lltool.tools.engine_arguments import add_thread_arguments, threads_of

if TYPE_CHECKING:
    from lltool.eval.importance import Coverage
    from lltool.eval.importance_job import ImportanceJob, ImportanceReport

EXAMPLES = """
lltool imatrix -m model-F16.gguf -f calibration.txt -o imatrix.gguf
lltool imatrix -m model-F16.gguf -f chats.jsonl --chat --until-stable
lltool imatrix --in-file one.gguf --in-file two.dat -o both.gguf
lltool imatrix --in-file imatrix.gguf --show-statistics
"""


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    merged = tuple(Path(name) for given in arguments.in_file for name in given.split(","))
    if arguments.show_statistics:
        return _show_statistics(merged, arguments.json)
    if arguments.output_format == "gguf" and arguments.output_file.suffix != ".gguf":
        print(f"note: {arguments.output_file} will be GGUF (the older format: --output-format dat)", file=sys.stderr)
    if arguments.file is None:
        return _merge(merged, arguments)
    if arguments.model is None:
        raise InputError("-f wants a model to run on it: -m MODEL")
    return _collect(merged, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "imatrix",
        "Collects importance statistics for quantizing, as llama-imatrix does. Run again, it goes on where it stopped.",
        EXAMPLES,
        json_flag=True,
    )
    parser.add_argument("-m", "--model", type=Path, help="GGUF file, best F16, BF16 or F32")
    parser.add_argument("-f", "--file", type=Path, help="text, UTF-8; without one, --in-file are merged only")
    parser.add_argument("-o", "--output-file", type=Path, default=Path("imatrix.gguf"), help="(default imatrix.gguf)")
    parser.add_argument(
        "--output-format", choices=("gguf", "dat"), default="gguf", help="dat: older, cannot be gone on with"
    )
    parser.add_argument("-c", "--ctx-size", type=positive, default=512, help="tokens a chunk (default 512)")
    parser.add_argument("--chunks", type=positive, help="chunks to take (default: all)")
    parser.add_argument("--chunk", "--from-chunk", type=_count, default=0, help="chunks to leave out at the start")
    parser.add_argument(
        "-ofreq", "--output-frequency", type=positive, default=10, help="write every N chunks (default 10)"
    )
    parser.add_argument("--save-frequency", type=_count, default=0, help="keep a copy OUTPUT.at_N every N chunks")
    parser.add_argument("--process-output", action="store_true", help="also the output matrix (or embedding, if tied)")
    parser.add_argument("--in-file", metavar="F", action="append", default=[], help="importance to add (also F,F,...)")
    parser.add_argument("--parse-special", action="store_true", help="special tokens in the text are such")
    parser.add_argument("--chat", action="store_true", help="a line is a JSON list of messages, for the chat template")
    parser.add_argument("--no-ppl", action="store_true", help="no perplexity on the way")
    parser.add_argument("--show-statistics", action="store_true", help="a table of the one --in-file, and nothing else")
    parser.add_argument(
        "--until-stable",
        metavar="R",
        type=_correlation,
        nargs="?",
        const=0.99,
        help="take chunks from all over the text and end when the ranking of columns has settled: its estimated rank "
        "correlation with that of endless text is R (default 0.99); looked at every -ofreq chunks",
    )
    parser.add_argument("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    parser.add_argument(
        "--precision", choices=("f32", "int8"), default="f32", help="int8: faster on quantized models, less exact"
    )
    add_thread_arguments(parser)
    return parser


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)


def _correlation(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def _collect(merged: tuple[Path, ...], arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from lltool.eval.importance_job import ImportanceJob, Progress, collect_importance

    job = ImportanceJob(
        model=arguments.model,
        text=arguments.file,
        output=arguments.output_file,
        context=arguments.ctx_size,
        batch=arguments.batch_size,
        threads=threads_of(arguments),
        precision=arguments.precision,
        first=arguments.chunk,
        chunks=arguments.chunks,
        parse_special=arguments.parse_special,
        chat=arguments.chat,
        process_output=arguments.process_output,
        perplexity=not arguments.no_ppl,
        merge=merged,
        save_every=arguments.output_frequency,
        snapshot_every=arguments.save_frequency,
        until_stable=arguments.until_stable,
        format=arguments.output_format,
    )
    with tqdm(unit="chunk", disable=None, file=sys.stderr) as bar:

        def show(progress: Progress) -> None:
            bar.total = progress.total
            running = progress.collected.running()
            shown = [f"PPL {running[-1]:.4f}"] if running else []
            shown += [f"settled to {progress.stability:.4f}"] if progress.stability is not None else []
            bar.set_postfix_str(", ".join(shown), refresh=False)
            bar.update(progress.collected.done - bar.n)

        def say(message: str) -> None:
            bar.write(f"note: {printable(message)}", file=sys.stderr)

        report = collect_importance(job, say=say, progress=show)
    for line in _report_lines(job, report):
        print(line, file=sys.stderr)
    if arguments.json:
        print_json(_as_json(job, report))
    else:
        print(job.output)
    return 0


def _report_lines(job: "ImportanceJob", report: "ImportanceReport") -> list[str]:
    collected = report.collected
    lines = []
    if running := collected.running():
        lines.append(",".join(f"[{i}]{value:.4f}" for i, value in enumerate(running, 1)))
        error = collected.error(job.context - 1 - job.context // 2)
        lines.append(f"Final estimate: PPL = {running[-1]:.4f} +/- {error:.5f}")
    if report.skipped:
        numbers = ", ".join(map(str, report.skipped))
        lines.append(f"warning: chunks that gave NaN or infinity, and are not counted: {numbers}")
    return lines + _coverage_lines(report.coverage)


def _coverage_lines(coverage: "Coverage") -> list[str]:
    lines = [
        f"importance of {coverage.entries} matrices"
        + ("" if not coverage.missing else f", none of {_some(coverage.missing)}")
    ]
    for name, count in coverage.idle_experts.items():
        lines.append(
            f"warning: {printable(name)}: {count} experts saw no token; a longer or more varied text may reach them"
        )
    for name, count in coverage.idle_columns.items():
        lines.append(f"warning: {printable(name)}: {count} columns were always zero")
    return lines


def _some(names: tuple[str, ...], most: int = 4) -> str:
    return printable(", ".join(names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _as_json(job: "ImportanceJob", report: "ImportanceReport") -> dict[str, Any]:
    collected, notes = report.collected, report.importance.notes
    running = collected.running()
    return {
        "path": str(job.output),
        "chunks": collected.done - len(collected.skipped),
        "chunks_wanted": report.windows,
        "chunks_resumed": report.resumed,
        "chunks_skipped": report.skipped,
        "context": job.context,
        "perplexity": running[-1] if running else None,
        "running": running,
        "stability": report.stability,
        "coverage": asdict(report.coverage),
        "made_of": {key: value.data for key, value in notes.items() if isinstance(value.data, str)},
    }


def _merge(merged: tuple[Path, ...], arguments: argparse.Namespace) -> int:
    from lltool.eval.importance_job import merge_files

    if not merged:
        raise InputError("nothing to do: give a model and a text (-m, -f), or files to merge (--in-file)")
    importance = merge_files(merged, arguments.output_file, arguments.ctx_size, arguments.output_format)
    if arguments.json:
        print_json(
            {
                "path": str(arguments.output_file),
                "chunks": importance.chunk_count,
                "entries": len(importance.sums),
                "datasets": importance.datasets,
            }
        )
    else:
        print(arguments.output_file)
    return 0


def _show_statistics(files: tuple[Path, ...], as_json: bool) -> int:
    from lltool.eval.importance_statistics import format_statistics, layer_statistics, matrix_statistics
    from lltool.quant.importance import read_importance

    if len(files) != 1:
        raise InputError(f"--show-statistics with {len(files)} files, wanted one --in-file")
    importance = read_importance(files[0])
    if as_json:
        matrices = matrix_statistics(importance)
        print_json(
            {"matrices": [asdict(s) for s in matrices], "layers": [asdict(s) for s in layer_statistics(matrices)]}
        )
    else:
        for line in format_statistics(importance):
            print(printable(line) if "\t" not in line else line)
    return 0
