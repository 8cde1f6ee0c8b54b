"""`lltool imatrix`: collects importance statistics for quantizing from a model and a text."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.adapter_arguments import add_adapter_arguments
from lltool.tools.arguments import MODEL, add_model_arguments, command_parser, positive, print_json, take_model
from lltool.tools.engine_arguments import add_thread_arguments, requested_threads
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note
from lltool.tools.terminal import printable

if TYPE_CHECKING:
    from lltool.eval.importance.job import ImportanceJob, ImportanceReport

EXAMPLES = """
lltool imatrix -m model-F16.gguf -f calibration.txt -o imatrix.gguf
lltool imatrix -m model-F16.gguf -f chats.jsonl --chat --until-stable
lltool imatrix --in-file one.gguf --in-file two.dat -o both.gguf
lltool imatrix --in-file imatrix.gguf --show-statistics
"""


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    arguments.force |= arguments.output_file is not None
    arguments.output_file = arguments.output_file or Path("imatrix.gguf")
    merged = tuple(Path(name) for given in arguments.in_file for name in given.split(","))
    if arguments.show_statistics:
        return _show_statistics(merged, arguments.json)
    if arguments.output_format == "gguf" and arguments.output_file.suffix != ".gguf":
        note(f"{arguments.output_file} will be GGUF; --output-format dat writes the older format")
    if arguments.file is None and arguments.words:
        raise InputError(f"{arguments.words[0]!r} names a model, but there is no text to run it on; give one with -f")
    if arguments.file is None:
        return _merge(merged, arguments)
    return _collect(merged, arguments)


def parser() -> CommandParser:
    parser = command_parser(
        "imatrix",
        "Collects importance statistics for quantizing, as llama-imatrix does. Resumes an interrupted run.",
        EXAMPLES,
        json_flag=True,
        most_used="-m -hf -f -o -c --chunks --in-file --until-stable --show-statistics -t -q",
    )
    add = parser.add_argument
    add_model_arguments(parser, help=f"{MODEL}; preferably F16, BF16 or F32")
    add("-f", "--file", type=Path, help="text, UTF-8; without it, the --in-file are merged")
    add("-o", "--output-file", type=Path, help="file to write (default imatrix.gguf)")
    add("--force", action="store_true", help="replace the default imatrix.gguf if it is from another job")
    add("--output-format", choices=("gguf", "dat"), default="gguf", help="dat: older, cannot be resumed")
    add("-c", "--ctx-size", type=positive, default=512, help="tokens per chunk (default 512)")
    add("--chunks", type=positive, help="number of chunks to process (default: all)")
    add("--chunk", "--from-chunk", type=_count, default=0, help="number of chunks to skip at the start")
    add("-ofreq", "--output-frequency", type=positive, default=10, help="write every N chunks (default 10)")
    add("--save-frequency", type=_count, default=0, help="keep a copy OUTPUT.at_N every N chunks")
    add("--process-output", action="store_true", help="include the output matrix (or embedding, if tied)")
    add("--in-file", metavar="F", action="append", default=[], help="importance to add (or F,F,...)")
    add("--parse-special", action="store_true", help="parse special tokens in the text")
    add("--chat", action="store_true", help="each line is a JSON list of messages for the chat template")
    add("--no-ppl", action="store_true", help="do not compute perplexity")
    add("--show-statistics", action="store_true", help="only print tables for the one --in-file")
    add(
        "--until-stable",
        metavar="R",
        type=_correlation,
        nargs="?",
        const=0.99,
        help="take chunks from all over the text and end when the ranking of columns is stable: its estimated rank "
        "correlation with that from endless text is R (default 0.99); checked every -ofreq chunks",
    )
    add(
        "--until-seen",
        metavar="N",
        type=positive,
        help="take chunks from all over the text and end when each expert has seen N tokens; with --until-stable, when "
        "both hold",
    )
    add("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    add("--precision", choices=("f32", "int8"), default="f32", help="int8: faster on quantized models, less exact")
    add_thread_arguments(parser)
    add_adapter_arguments(parser)
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
    arguments.model = take_model(arguments)

    from tqdm import tqdm

    from lltool.eval.importance.job import ImportanceJob, JobProgress, collect_importance

    job = ImportanceJob(
        model=arguments.model,
        text=arguments.file,
        output=arguments.output_file,
        context=arguments.ctx_size,
        batch=arguments.batch_size,
        threads=requested_threads(arguments),
        precision=arguments.precision,
        lora=tuple(arguments.lora),
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
        until_seen=arguments.until_seen,
        format=arguments.output_format,
        replace=arguments.force,
    )
    with tqdm(unit="chunk", disable=None, file=sys.stderr) as bar:

        def show(progress: JobProgress) -> None:
            bar.total = progress.total
            running = progress.collected.running()
            shown = [f"PPL {running[-1]:.4f}"] if running else []
            shown += [f"stability {progress.stability:.4f}"] if progress.stability is not None else []
            bar.set_postfix_str(", ".join(shown), refresh=False)
            bar.update(progress.collected.done - bar.n)

        def say(message: str) -> None:
            bar.clear()
            note(message)
            bar.refresh()

        report = collect_importance(job, say=say, progress=show)
    for line in _report_lines(job, report):
        print(line, file=sys.stderr)
    for text in _faults(report):
        note(text)
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
    coverage = report.coverage
    missing = f", but none of {_some(coverage.missing)}" if coverage.missing else ""
    lines.append(f"importance of {coverage.entries} matrices{missing}")
    if coverage.rarest:
        name, expert, tokens, mean = coverage.rarest
        lines.append(f"rarest expert: number {expert} of {printable(name)} saw {tokens} tokens, a mean one {mean:.0f}")
    return lines


def _faults(report: "ImportanceReport") -> Iterator[str]:
    """What makes the importance less good than it could be."""
    if report.skipped:
        yield f"skipped chunks that gave NaN or infinity: {', '.join(map(str, report.skipped))}"
    for name, count in report.coverage.idle_experts.items():
        yield f"{name}: {count} experts saw no token; a longer or more varied text may reach them"
    for name, count in report.coverage.idle_columns.items():
        yield f"{name}: {count} columns were always zero"


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
    from lltool.eval.importance.job import merge_files

    if not merged:
        raise InputError("nothing to do: give a model and a text (-m, -f), or files to merge (--in-file)")
    if arguments.output_file.exists() and not arguments.force:
        raise InputError(f"{arguments.output_file}: exists; name another file with -o, or replace it with --force")
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
    from lltool.eval.importance.statistics import format_statistics, layer_statistics, matrix_statistics
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
