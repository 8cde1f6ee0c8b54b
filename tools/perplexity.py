"""`lltool perplexity`: measures how well a model predicts texts."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lltool.gguf.errors import InputError
from lltool.tools import divergence, tasks
from lltool.tools.arguments import (
    add_format_arguments,
    add_model_arguments,
    command_parser,
    output_file,
    output_to,
    paths,
    positive,
    print_json,
    take_model,
)
from lltool.tools.engine_arguments import add_engine_arguments, engine_options
from lltool.tools.parser import CommandParser

if TYPE_CHECKING:
    from lltool.engine.model import Model
    from lltool.eval.scoring.perplexity import Method, PerplexityResult

EXAMPLES = """
lltool perplexity -m model.gguf -f text.txt
lltool perplexity -m model.gguf -f prose.txt,code.txt -c 1024 --chunks 20 --format csv
lltool perplexity -m model.gguf -f text.txt --method hf -c 2048 --stride 512 --json
lltool perplexity -m model.gguf -f text.txt --losses losses.csv
"""


def main(argv: list[str]) -> int:
    if task := tasks.from_perplexity(argv):
        return tasks.main(task)
    arguments = parser().parse_args(argv)
    if not arguments.file and not divergence.is_wanted(arguments):
        raise InputError("no text to measure on; give one with -f")
    arguments.model = take_model(arguments)
    if divergence.is_wanted(arguments):
        return divergence.run(arguments)

    from lltool.engine.model import load_model
    from lltool.eval.common.text import read_evaluation_text
    from lltool.eval.scoring import perplexity_report
    from lltool.eval.scoring.perplexity import Method, MethodName, bos_of, perplexity
    from lltool.gguf.whole_file import check_output

    chosen: MethodName = arguments.method or ("strided" if arguments.stride else "llama")
    method = Method(chosen, arguments.ctx_size, arguments.stride, arguments.score)
    if arguments.losses:
        check_output(arguments.losses, arguments.file)
    texts = {path: read_evaluation_text(path) for path in arguments.file}
    longest = max(len(text.encode()) for text in texts.values())
    batch = arguments.batch_size
    with load_model(
        arguments.model,
        context=method.window,
        sequences=max(1, min(batch, longest) // method.window),  # no more windows than a text has
        batch=batch,
        precision=arguments.precision,
        **engine_options(arguments),
    ) as model:
        _say("tokenizing the input ..")
        start = perf_counter()
        ids = {path: method.encode(model.tokenizer, text) for path, text in texts.items()}
        _say(f"tokenization took {(perf_counter() - start) * 1000:g} ms")
        for path, tokens in ids.items():
            method.cut(tokens, bos_of(model), str(path))  # reports a text that is too short before the long work
        results, seconds = {}, []
        for path, tokens in ids.items():
            if len(ids) > 1:
                _say(str(path))
            start = perf_counter()
            with _RunningValues(model, method) as show:
                results[path] = perplexity(
                    model,
                    tokens,
                    context=method.context,
                    chunks=arguments.chunks,
                    method=method.name,
                    stride=method.stride,
                    score=method.score,
                    name=str(path),
                    progress=show,
                )
            seconds.append(perf_counter() - start)
        with output_to(arguments.output):
            _print_report(results, model, seconds, method, arguments.format)
        if arguments.losses:
            perplexity_report.write_losses(arguments.losses, results, model.tokenizer)
    return 0


def parser() -> CommandParser:
    parser = command_parser(
        "perplexity",
        "Measures perplexity on texts, as llama-perplexity does or by another method, or a model's divergence from "
        "another one.",
        EXAMPLES.rstrip() + divergence.EXAMPLES,
        most_used="-m -hf -f -c --chunks --method --reference --worst -t --format -o --json -q",
    )
    add = parser.add_argument
    add_model_arguments(parser)
    add("-f", "--file", type=paths, action="extend", default=[], metavar="TEXT", help="texts, UTF-8 (or F,F,...)")
    add("-c", "--ctx-size", type=positive, default=512, help="tokens per window (default 512)")
    add("--chunks", type=positive, help="number of windows per text (default: all)")
    add(
        "--method",
        choices=("llama", "strided", "hf"),
        help="llama: adjacent windows, as in llama-perplexity (default); strided: as in its --ppl-stride; hf: the "
        "sliding window of Hugging Face's guide",
    )
    add(
        "--stride",
        "--ppl-stride",
        type=_stride,
        metavar="N",
        help="a window every N tokens, for the methods strided (which it selects) and hf (default: half of -c)",
    )
    add(
        "--score",
        choices=("half", "all"),
        default="half",
        help="with llama: score the second half of each window, or all",
    )
    add("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    add("--precision", choices=("int8", "f32"), default="int8", help="f32: exact, slower kernels")
    add_format_arguments(parser, ("text", "md", "csv", "json"))
    add("--losses", type=_losses_file, metavar="FILE", help="write each scored token's log-probability: .csv or .npy")
    divergence.add_arguments(parser)
    add_engine_arguments(parser, measures=True)
    return parser


def _print_report(
    results: "dict[Path, PerplexityResult]", model: "Model", seconds: list[float], method: "Method", form: str
) -> None:
    from lltool.eval.scoring import perplexity_report

    if form in ("json", "csv"):
        records = perplexity_report.to_records(results, model, seconds)
        if form == "csv":
            print(perplexity_report.format_csv(records))
        else:
            print_json(records if len(records) > 1 else records[0])
    elif form == "md" or len(results) > 1:
        print(perplexity_report.format_texts(results), f"method: {method}", sep="\n\n")
    else:
        (result,) = results.values()
        print(perplexity_report.format_estimate(result), f"method: {method}", sep="\n")


def _stride(text: str) -> int | None:
    """Parses a stride; llama-perplexity's 0 means None."""
    return None if text == "0" else positive(text)


def _losses_file(text: str) -> Path:
    if Path(text).suffix not in (".csv", ".npy"):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a .csv or .npy file")
    return output_file(text)


def _say(message: str, end: str = "\n") -> None:
    print(f"perplexity: {message}", end=end, file=sys.stderr, flush=True)


class _RunningValues:
    """Prints llama-perplexity's lines: the number of windows, the estimated time, and the perplexity after each."""

    def __init__(self, model: "Model", method: "Method") -> None:
        self._model, self._method = model, method
        self._start = perf_counter()
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._shown:
            print(file=sys.stderr)

    def __call__(self, done: int, total: int, running: Sequence[float]) -> None:
        if not self._shown:
            at_once = max(1, self._model.batch // self._method.window)
            size, batch = self._method.window, self._model.batch
            _say(f"calculating perplexity over {total} chunks, n_ctx={size}, batch_size={batch}, n_seq={at_once}")
            seconds = perf_counter() - self._start
            hours, rest = divmod(int(seconds * total / at_once), 3600)
            left = f"{hours} hours " * (hours > 0) + f"{rest / 60:.2f} minutes"
            _say(f"{seconds:.2f} seconds per pass - ETA {left}")
        self._shown = done
        print(f"[{done}]{running[-1]:.4f},", end="", file=sys.stderr, flush=True)
