"""The command line of `lltool bench`: llama-bench's options with its lists and ranges, and what it has not."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lltool.tools.arguments import command_parser, image_file, positive
from lltool.tools.engine_arguments import priority

EXAMPLES = """
lltool bench -m model.gguf
lltool bench -m a.gguf,b.gguf -p 128,512 -n 32,128 -t 1-4 -o csv
lltool bench -m model.gguf -p 512 -n 0 -ub 64-512*2 -d 0,4096 --until 2% --plot speed.png
lltool bench -m model.gguf -p 128 -n 32 -npl 1,2,4,8
lltool bench -m model.gguf --peer transformers --peer llama-cpp-python:/opt/venv/bin/python --peer llama-bench:PATH
lltool bench -m model.gguf -p 512 -n 128 --profile --plot profile.png
lltool bench -m model.gguf --autotune
lltool bench -m model.gguf -o sql | sqlite3 results.sqlite
lltool bench compare before.json after.json
lltool bench history --test tg128 --last 10
"""
NOTE = """\
Each of the test parameters takes lists (1,2,4), ranges (1-8, 1-8+2, 1-64*2) of numbers, and can be given several times;
all combinations are measured, in turns. What this build cannot do is an error before anything runs."""
FORMATS = ("md", "csv", "json", "jsonl", "sql")
_RANGE = re.compile(r"(-?\d{1,12})(?:-(\d{1,12})(?:([+*])(\d{1,12}))?)?")
_MOST_VALUES = 10_000
_FLASH = {"on": 1, "enabled": 1, "true": 1, "1": 1, "off": 0, "disabled": 0, "false": 0, "0": 0, "auto": -1, "-1": -1}


def parse_range(text: str) -> list[int]:
    """`4`, `1-8`, `1-8+2` (1, 3, 5, 7), `1-64*2` (1, 2, 4, ... 64), and lists of these."""
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if not match:
            raise argparse.ArgumentTypeError(f"{part!r} is not a number, or a range like 1-8, 1-8+2 or 1-64*2")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[4] or 1)
        is_product = match[3] == "*"
        if last < first or step < 1 or (is_product and (step < 2 or first < 1)):
            raise argparse.ArgumentTypeError(f"{part!r} is a range that does not rise")
        if is_product:
            found += [first * step**i for i in range(64) if first * step**i <= last]
        else:
            found += range(first, min(last + 1, first + step * _MOST_VALUES + 1), step)
        if len(found) > _MOST_VALUES:
            raise argparse.ArgumentTypeError(f"{part!r} has more than {_MOST_VALUES} values")
    return found


def _counts(text: str) -> list[int]:
    found = parse_range(text)
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"{min(found)} is below 0")
    return found


def _words(text: str) -> list[str]:
    return text.split(",")


def _bits(text: str) -> list[bool]:
    return [_look_up(part, {"0": False, "1": True}) for part in text.split(",")]


def _flash(text: str) -> list[int]:
    return [_look_up(part, _FLASH) for part in text.split(",")]


def _splits(text: str) -> list[str]:
    """Shares of devices, `3/1`, as llama-bench writes them: two digits, without the zeros behind the last share."""
    found = []
    for part in text.split(","):
        try:
            shares = [f"{float(share):.2f}" for share in re.split("[;/]+", part)]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is not a list of shares like 3/1") from None
        while len(shares) > 1 and float(shares[-1]) == 0:
            shares.pop()
        found.append("/".join(shares))
    return found


def _overrides(text: str) -> list[str]:
    for part in text.split(","):
        if part not in ("", "none") and not all("=" in rule for rule in part.split(";")):
            raise argparse.ArgumentTypeError(f"{part!r} is not a list of NAME=BUFFER with ; between")
    return [part or "none" for part in text.split(",")]


def _look_up(text: str, known: dict[str, Any]) -> Any:
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
    return known[text]


# Options that are fields of Settings, each an axis of the grid: flags, type, help.
AXES: dict[str, tuple[tuple[str, ...], Callable[[str], list[Any]], str]] = {
    "batch": (("-b", "--batch-size"), _counts, "tokens submitted at once (default 2048)"),
    "ubatch": (("-ub", "--ubatch-size"), _counts, "tokens computed at once (default 512)"),
    "type_k": (("-ctk", "--cache-type-k"), _words, "keys: f32, f16, bf16, q8_0, q4_0 (default f16)"),
    "type_v": (("-ctv", "--cache-type-v"), _words, "values: as -ctk (default f16)"),
    "threads": (("-t", "--threads"), _counts, "numbers of threads (default: what --autotune found, or one a core)"),
    "cpu_mask": (("-C", "--cpu-mask"), _words, "processors to run on, in hexadecimal (default 0x0: any)"),
    "cpu_strict": (("--cpu-strict",), _bits, "1: each thread stays on one processor (default 0)"),
    "poll": (("--poll",), _counts, "0 to 100: how long idle threads spin before they sleep (default 50)"),
    "n_gpu_layers": (("-ngl", "--n-gpu-layers"), parse_range, "layers on a GPU (default -1: as many as there is room)"),
    "n_cpu_moe": (("-ncmoe", "--n-cpu-moe"), _counts, "layers whose experts stay on the CPU (default 0)"),
    "split_mode": (("-sm", "--split-mode"), _words, "none or layer: how GPUs share a model (default layer)"),
    "main_gpu": (("-mg", "--main-gpu"), _counts, "0: the GPU of a model that is not split"),
    "no_kv_offload": (("-nkvo", "--no-kv-offload"), _bits, "1: the cache stays in main memory (default 0)"),
    "flash_attn": (("-fa", "--flash-attn"), _flash, "on or auto: attention in tiles (default auto)"),
    "devices": (("-dev", "--device"), _words, "auto or none (default auto)"),
    "load_mode": (("-lm", "--load-mode"), _words, "mmap, mlock, or none: read in (default auto: mmap)"),
    "lazy_mode": (("-lzm", "--lazy-mode"), _words, "auto or off (default auto)"),
    "embeddings": (("-embd", "--embeddings"), _bits, "0: logits are computed"),
    "tensor_split": (("-ts", "--tensor-split"), _splits, "0: shares of GPUs"),
    "tensor_buft_overrides": (("-ot", "--override-tensor"), _overrides, "none: tensors by name into other memory"),
    "no_op_offload": (("-nopo", "--no-op-offload"), _bits, "1: no operation goes to a GPU (default 0)"),
    "no_host": (("--no-host",), _bits, "0"),
    "repack": (("--repack",), _bits, "0: weights are used as they lie in the file"),
    "fit_target": (("-fitt", "--fit-target"), _counts, "0: MiB to leave free on a GPU"),
    "fit_min_ctx": (("-fitc", "--fit-ctx"), _counts, "0: the least context for -fitt"),
    "precision": (("--precision",), _words, "int8 or f32, which is exact and slower (default int8)"),
}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Raises InputError. What is in AXES is None unless given."""
    parser = command_parser(
        "bench",
        "Measures prefill (pp) and generation (tg) on random tokens, with llama-bench's options and columns.\n" + NOTE,
        EXAMPLES,
        json_flag=True,
    )
    tests = parser.add_argument_group("test parameters")
    add = tests.add_argument
    add("-m", "--model", type=_paths, action="extend", required=True, help="GGUF files")
    add("-p", "--n-prompt", "-npp", type=_counts, action="extend", metavar="N", help="prompt tokens (default 512)")
    add("-n", "--n-gen", "-ntg", type=_counts, action="extend", metavar="N", help="generated tokens (default 128)")
    add("-pg", type=_pair, action="append", default=[], metavar="PP,TG", help="a prompt and tokens after it, together")
    add("-d", "--n-depth", type=_counts, action="extend", metavar="N", help="tokens in the cache before (default 0)")
    add(
        "-npl", type=_counts, action="extend", default=[], metavar="N", help="sequences at once, as llama-batched-bench"
    )
    for name, (flags, type, text) in AXES.items():
        add(*flags, dest=name, type=type, action="extend", metavar="X", help=text)
    effort = parser.add_argument_group("how much")
    effort.add_argument(
        "-r", "--repetitions", type=positive, default=5, metavar="N", help="runs of each test (default 5)"
    )
    effort.add_argument("--until", type=_fraction, metavar="2%", help="repeat until the interval is ± that narrow")
    effort.add_argument("--max-time", type=positive, default=600, metavar="S", help="and not longer (default 600)")
    effort.add_argument("--delay", type=_seconds, default=0.0, metavar="S", help="rest before each run (default 0)")
    effort.add_argument("--prio", type=priority, default=0, metavar="-1...3", help="of the process (default 0)")
    effort.add_argument("--no-warmup", action="store_true", help="time the first run as well")
    effort.add_argument(
        "--no-memory", action="store_true", help="leave out memory and load times, which take one run more of each test"
    )
    effort.add_argument(
        "--profile", action="store_true", help="instead: time of each operation, and how near it is to what limits it"
    )
    effort.add_argument(
        "--autotune",
        action="store_true",
        help="instead: find the best -t and -tb for models of this size, and keep them",
    )
    effort.add_argument("--peer", action="append", default=[], metavar="NAME", help="another engine, in turns")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", choices=FORMATS, default="md", help="what is printed (default md)")
    output.add_argument("-oe", "--output-err", choices=FORMATS, help="the same on stderr")
    output.add_argument("--plot", type=image_file, metavar="FILE", help="draw a picture, .png or .svg")
    output.add_argument("--save", type=Path, metavar="STEM", help="write STEM.csv, STEM.json and a picture, STEM.png")
    output.add_argument("--db", type=Path, metavar="FILE", help="keep the results there (~/.cache/lltool/bench.sqlite)")
    output.add_argument("--no-history", action="store_true", help="do not keep them")
    output.add_argument("--progress", action="store_true", help="a line on stderr before each run")
    output.add_argument("--strict", action="store_true", help="an error where something asked for cannot be had")
    arguments = parser.parse_args([_with_dashes(argument) for argument in argv])
    if arguments.json:
        arguments.output = "json"
    return arguments


def _with_dashes(argument: str) -> str:
    """llama-bench takes --n_prompt for --n-prompt."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _paths(text: str) -> list[Path]:
    if not all(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} lacks the name of a file")
    return [Path(part) for part in text.split(",")]


def _pair(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9}),(\d{1,9})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pair of numbers like 512,128")
    return int(match[1]), int(match[2])


def _fraction(text: str) -> float:
    """`2%` or `0.02`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of the speed such as 2% or 0.02")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value
