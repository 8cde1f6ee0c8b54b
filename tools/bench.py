"""`lltool bench`: tokens a second of models, over all that can be set, in llama-bench's words."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lltool.gguf.errors import InputError
from lltool.tools.bench_arguments import AXES, parse_arguments

if TYPE_CHECKING:
    from lltool.eval.bench.measure import Progress
    from lltool.eval.bench.plan import Point
    from lltool.eval.bench.record import Row

_NICE = {-1: 5, 0: 0, 1: -5, 2: -10, 3: -20}  # of llama.cpp's priorities


def main(argv: list[str]) -> int:
    match argv:
        case ["compare", *rest]:
            from lltool.tools import bench_compare

            return bench_compare.main(rest)
        case ["history", *rest]:
            from lltool.tools import bench_history

            return bench_history.main(rest)
    arguments = parse_arguments(argv)
    from lltool.eval.bench.measure import Interrupted, measure
    from lltool.eval.bench.record import to_row
    from lltool.eval.bench.schedule import Effort

    points = _plan(arguments)
    _set_priority(arguments.prio)
    effort = Effort(arguments.repetitions, arguments.until, seconds=arguments.max_time, delay=arguments.delay)
    warm, memory, stop = not arguments.no_warmup, not arguments.no_memory, None
    with _progress(arguments) as progress:
        try:
            measurements = measure(
                points, effort, warm=warm, memory=memory, history=_history(arguments), progress=progress
            )
        except Interrupted as interrupt:
            measurements, stop = interrupt.measurements, interrupt
    _report([to_row(measurement) for measurement in measurements], arguments)
    if stop:
        raise stop
    return 0


def _history(arguments: argparse.Namespace) -> Path | None:
    from lltool.eval.bench.history import default_database

    return None if arguments.no_history else arguments.db or default_database()


def _plan(arguments: argparse.Namespace) -> "list[Point]":
    """The points to measure. What cannot be had is an error, or a warning once where it is measured without."""
    from lltool.eval.bench.plan import find_unmet, grid, resolve, workloads

    runs = workloads(
        arguments.n_prompt or (512,),
        arguments.n_gen or (128,),
        arguments.pg,
        arguments.n_depth or (0,),
        arguments.npl,
    )
    axes = {name: getattr(arguments, name) for name in AXES if getattr(arguments, name) is not None}
    points = grid(arguments.model, runs, **axes)
    for point in points:
        resolve(point.settings)
    for unmet in dict.fromkeys(unmet for point in points if (unmet := find_unmet(point.settings))):
        if arguments.strict:
            raise InputError(unmet)
        print(f"lltool: warning: {unmet}", file=sys.stderr)
    return points


def _report(rows: "Sequence[Row]", arguments: argparse.Namespace) -> None:
    from lltool.eval.bench.history import keep
    from lltool.eval.bench.tables import format_rows

    print(format_rows(rows, arguments.output), flush=True)
    if arguments.output_err:
        print(format_rows(rows, arguments.output_err), file=sys.stderr)
    if not rows:
        return
    if history := _history(arguments):
        keep(history, rows)
    if arguments.plot:
        from lltool.eval.bench.plots import plot_rows

        print(plot_rows(rows, arguments.plot), file=sys.stderr)


def _progress(arguments: argparse.Namespace) -> "AbstractContextManager[Progress]":
    from lltool.tools.progress import progress_bar

    if not arguments.progress:
        return progress_bar("run")

    def tell(done: int, total: int, note: str) -> None:
        if note:
            print(f"lltool: run {done + 1} of {total}: {note}", file=sys.stderr)

    return nullcontext(tell)


def _set_priority(level: int) -> None:
    if level == 0:
        return
    if not hasattr(os, "setpriority"):
        raise InputError(f"--prio {level}: this system has no priorities to set; wanted 0")
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE[level])
    except PermissionError:
        raise InputError(f"--prio {level}: a higher priority is not this user's to take; wanted 0 or -1") from None
