"""Options of the commands that run a model, named as in llama.cpp: threads, memory, exactness and GPUs."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.adapter_arguments import add_adapter_arguments
from lltool.tools.arguments import positive
from lltool.tools.talk import note

if TYPE_CHECKING:
    from lltool.engine.cpu.threads import Threads
    from lltool.engine.gpu.placement import Layers, Placement

_NICE = {-1: 5, 0: 0, 1: -5, 2: -10, 3: -20}  # nice values of llama.cpp's priorities


def add_engine_arguments(parser: argparse.ArgumentParser, *, measures: bool = False) -> None:
    """Adds the options that `engine_options` turns into arguments of `load_model`."""
    add_thread_arguments(parser)
    add_adapter_arguments(parser)
    group = parser.add_argument_group("memory and exactness")
    for flag, letter, what in (("-ctk", "k", "keys"), ("-ctv", "v", "values")):
        group.add_argument(
            flag,
            f"--cache-type-{letter}",
            choices=("f32", "f16", "bf16", "q8_0", "q4_0"),
            help=f"how the cache holds {what} (default: f16, or f32 with --precision f32)",
        )
    group.add_argument(
        "-lm",
        "--load-mode",
        choices=("auto", "mmap", "none", "mlock"),
        default="auto",
        help="mmap: map the file (default); none: read it into memory; mlock: map it and keep it in memory",
    )
    for flag, mode in (("--no-mmap", "none"), ("--mlock", "mlock")):
        group.add_argument(flag, dest="load_mode", action="store_const", const=mode, help=f"the same as -lm {mode}")
    group.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=measures,
        help="bit-identical scores whatever else is in the batch and however a text is split, also for batches of one "
        "or two tokens, which decode somewhat more slowly, and much more slowly where weights are stored as floats "
        f"(default: {'yes' if measures else 'no'})",
    )

    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `requested_placement` reads."""
    add = parser.add_argument_group("GPU").add_argument
    add(
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        dest="gpu_layers",
        type=gpu_layers,
        metavar="N",
        help="how many of the last layers run on a GPU: a number, auto (as many as fit) or all (default: none)",
    )
    add("-dev", "--device", metavar="ID", help="the device, as `lltool devices` lists it (default: the first GPU)")


def add_thread_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `requested_threads` turns into the argument `threads` of `load_model`."""
    add = parser.add_argument_group("threads").add_argument
    add(
        "-t",
        "--threads",
        type=positive,
        metavar="N",
        help="threads (default: what bench --autotune found, or one per core)",
    )
    add("-tb", "--threads-batch", type=positive, metavar="N", help="threads for several tokens at once (default: -t)")
    add("-C", "--cpu-mask", metavar="M", help="processors to run on, in hexadecimal such as 0x3 (default: any)")
    add("-Cr", "--cpu-range", metavar="LO-HI", help="processors to run on, with those of -C")
    add("--cpu-strict", type=int, choices=(0, 1), default=0, help="1: pin each thread to one of them (default 0)")
    add("-Cb", "--cpu-mask-batch", metavar="M", help="-C for several tokens at once (default: those of -C and -Cr)")
    add("-Crb", "--cpu-range-batch", metavar="LO-HI", help="-Cr for several tokens at once")
    add("--cpu-strict-batch", type=int, choices=(0, 1), help="for several tokens at once (default: --cpu-strict)")
    add("--prio", type=priority, default=0, metavar="-1...3", help="low, normal (0, default), medium, high, realtime")
    add(
        "--poll",
        type=int,
        default=50,
        metavar="0...100",
        help="how long idle threads spin before they sleep, in 10 microseconds (default 50)",
    )


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `load_model`."""
    mode = "mmap" if arguments.load_mode == "auto" else arguments.load_mode
    names = ("cache_type_k", "cache_type_v", "deterministic")
    options = {name: getattr(arguments, name) for name in names}
    placement = requested_placement(arguments.gpu_layers, arguments.device)
    own = {"load_mode": mode, "placement": placement, "lora": arguments.lora}
    return {"threads": requested_threads(arguments), **own, **options}


def gpu_layers(text: str) -> "Layers":
    """The type of an argument that says how many layers run on a GPU."""
    if text in ("auto", "-1"):
        return "auto"
    if text == "all":
        return "all"
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a number of layers, auto or all")
    return count


def requested_placement(layers: "Layers | None", device: str | None) -> "Placement | None":
    """Where layers run; None if all are on the CPU. A note says so if a GPU was asked for and there is none.

    Raises InputError for a device that does not exist.
    """
    if device == "none" or layers == 0 or (layers is None and device is None):
        return None
    from lltool.engine.gpu.placement import Placement, choose_device

    layers = "auto" if layers is None else layers
    if choose_device(device) is None:
        note(f"-ngl {layers}: no GPU was found (`lltool devices` lists devices), so all layers run on the CPU")
        return None
    return Placement(layers, device)


def requested_threads(arguments: argparse.Namespace) -> "Threads | None":
    """Sets the requested priority and returns the requested threads; None if `load_model` is to choose them.

    Raises InputError for processors, threads or a priority that this process cannot have.
    """
    from lltool.engine.cpu.threads import Team, Threads, check_threads, default_threads

    count = arguments.threads or default_threads()
    decode = Team(count, _cpus(arguments.cpu_mask, arguments.cpu_range), bool(arguments.cpu_strict))
    strict = arguments.cpu_strict if arguments.cpu_strict_batch is None else arguments.cpu_strict_batch
    cpus = _cpus(arguments.cpu_mask_batch, arguments.cpu_range_batch) or decode.cpus
    threads = Threads(decode, Team(arguments.threads_batch or count, cpus, bool(strict)), arguments.poll)
    check_threads(threads)
    set_priority(arguments.prio)
    is_asked = arguments.threads or arguments.threads_batch or threads != Threads.of(None)
    return threads if is_asked else None


def _cpus(mask: str | None, range: str | None) -> tuple[int, ...]:
    from lltool.engine.cpu.threads import parse_mask, parse_range

    found = (parse_mask(mask) if mask else frozenset()) | (parse_range(range) if range else frozenset())
    return tuple(sorted(found))


def priority(text: str) -> int:
    """The type of an argument that is one of llama.cpp's priorities."""
    if text not in (known := [str(level) for level in _NICE]):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
    return int(text)


def set_priority(level: int) -> None:
    """Sets this process's priority, for the threads that it starts from now on. Raises InputError if it cannot."""
    if level == 0:
        return
    if not hasattr(os, "setpriority"):
        raise InputError(f"--prio {level}: this system cannot set priorities; wanted 0")
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE[level])
    except PermissionError:
        raise InputError(f"--prio {level}: this user may not set a higher priority; wanted 0 or -1") from None
