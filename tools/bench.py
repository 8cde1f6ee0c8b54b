"""`lltool bench`: tokens a second of models, as llama-bench measures and prints them."""

import argparse
import os
import sys
from pathlib import Path

from lltool.tools.arguments import command_parser, positive

EXAMPLES = """
lltool bench -m model.gguf
lltool bench -m a.gguf,b.gguf -p 512 -n 128 -t 1,2 -r 5 -o csv --plot speed.png
lltool bench -m model.gguf -n 64 --peer /opt/venv/bin/python
"""


def main(argv: list[str]) -> int:
    parser = command_parser(
        "bench",
        "Measures prefill (pp) and generation (tg) speed on random tokens, mean ± standard deviation of -r runs.",
        EXAMPLES,
        json_flag=True,
    )
    parser.add_argument(
        "-m", "--model", type=_paths, action="extend", required=True, help="GGUF files, comma-separated"
    )
    parser.add_argument("-p", "--n-prompt", type=_counts, default=[512], help="prompt lengths (default 512; 0: none)")
    parser.add_argument("-n", "--n-gen", type=_counts, default=[128], help="tokens to generate (default 128; 0: none)")
    parser.add_argument("-t", "--threads", type=_positives, help="numbers of threads (default: one a core)")
    parser.add_argument("-r", "--repetitions", type=positive, default=5, help="runs of each test (default 5)")
    parser.add_argument("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=0, help="there is no GPU executor in this build")
    parser.add_argument("--precision", choices=("int8", "f32"), default="int8", help="f32: exact, slower kernels")
    parser.add_argument("--no-warmup", action="store_true", help="time the first run as well")
    parser.add_argument("-o", "--output", choices=("md", "csv", "json"), default="md", help="format (default md)")
    parser.add_argument("--plot", type=_image, metavar="PNG", help="draw bars with error bars into this file")
    parser.add_argument("--peer", metavar="PYTHON", help="compare with llama-cpp-python of this Python, in turns")
    parser.add_argument("--strict", action="store_true", help="an error where something asked for cannot be had")
    arguments = parser.parse_args(argv)

    from lltool.engine.threads import default_threads
    from lltool.gguf.errors import InputError

    if arguments.n_gpu_layers > 0:
        message = f"-ngl {arguments.n_gpu_layers}: this build has no GPU executor, everything runs on the CPU"
        if arguments.strict:
            raise InputError(message)
        print(f"lltool: warning: {message}", file=sys.stderr)
    if arguments.peer and (arguments.json or arguments.output != "md" or arguments.plot):
        raise InputError("--peer prints a table in Markdown and nothing else; leave out --json, -o and --plot")
    arguments.threads = arguments.threads or [default_threads()]
    return _compare(arguments) if arguments.peer else _measure(arguments)


def _measure(arguments: argparse.Namespace) -> int:
    from lltool.eval import throughput_tables
    from lltool.eval.throughput import measure
    from lltool.tools.progress import progress_bar

    with progress_bar("run") as progress:
        measurements = measure(
            arguments.model,
            prompts=arguments.n_prompt,
            generations=arguments.n_gen,
            threads=arguments.threads,
            repetitions=arguments.repetitions,
            batch=arguments.batch_size,
            warm_up=not arguments.no_warmup,
            precision=arguments.precision,
            progress=progress,
        )
    output = "json" if arguments.json else arguments.output
    formats = {
        "md": throughput_tables.format_markdown,
        "csv": throughput_tables.format_csv,
        "json": throughput_tables.format_json,
    }
    print(formats[output](measurements))
    if arguments.plot:
        from lltool.eval.plots import plot_throughput

        print(plot_throughput(measurements, arguments.plot), file=sys.stderr)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from lltool.eval.peers import compare, format_pairings, peer_version
    from lltool.eval.throughput import workloads
    from lltool.gguf.errors import InputError
    from lltool.tools.progress import progress_bar

    if peer_version(arguments.peer) is None:
        message = f"{arguments.peer}: has no llama-cpp-python to compare with; `pip install llama-cpp-python` there"
        if arguments.strict:
            raise InputError(message)
        print(f"lltool: warning: {message}; measuring lltool alone", file=sys.stderr)
        return _measure(arguments)
    pairings = []
    for path in arguments.model:
        for threads in arguments.threads:
            with progress_bar("pair", f"{path.name}, {threads} threads") as progress:
                pairings += compare(
                    path,
                    arguments.peer,
                    workloads=workloads(arguments.n_prompt, arguments.n_gen),
                    threads=threads,
                    repetitions=arguments.repetitions,
                    batch=arguments.batch_size,
                    warm_up=not arguments.no_warmup,
                    precision=arguments.precision,
                    progress=progress,
                )
    print(format_pairings(pairings))
    return 0


def _paths(text: str) -> list[Path]:
    if not all(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} lacks the name of a file")
    return [Path(part) for part in text.split(",")]


def _image(text: str) -> Path:
    """A file that can be written, as is better known before the measurement than after it."""
    path = Path(text)
    if not text or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file that can be written")
    return path


def _counts(text: str) -> list[int]:
    """Comma-separated lengths; 0 means none."""
    return [0 if part == "0" else positive(part) for part in text.split(",")]


def _positives(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]
