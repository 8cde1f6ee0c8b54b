"""`lltool bench`: tokens a second of models, over all that can be set, in llama-bench's words."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.arguments import print_json
from lltool.tools.bench_arguments import AXES, parse_arguments
from lltool.tools.engine_arguments import set_priority

if TYPE_CHECKING:
    from lltool.eval.bench.measure import Progress
    from lltool.eval.bench.peers.peer import Peer
    from lltool.eval.bench.plan import Point
    from lltool.eval.bench.record import Row


def main(argv: list[str]) -> int:
    match argv:
        case ["compare", *rest]:
            from lltool.tools import bench_compare

            return bench_compare.main(rest)
        case ["history", *rest]:
            from lltool.tools import bench_history

            return bench_history.main(rest)
    arguments = parse_arguments(argv)
    if arguments.autotune:
        return _autotune(arguments)
    from lltool.eval.bench.record import Interrupted

    points = _plan(arguments)
    if arguments.profile:
        return _profile(points, arguments)
    peers, history = _find_peers(arguments), _open_history(arguments)
    set_priority(arguments.prio)
    try:
        rows = _measure(points, peers, history, arguments)
    except Interrupted as stop:
        _report(stop.rows, history, arguments)
        raise
    _report(rows, history, arguments)
    return 0


def _measure(
    points: "Sequence[Point]", peers: "Sequence[Peer]", history: Path | None, arguments: argparse.Namespace
) -> "list[Row]":
    from lltool.eval.bench.environment import describe_build, describe_machine
    from lltool.eval.bench.history import find_drift
    from lltool.eval.bench.measure import measure
    from lltool.eval.bench.record import to_row
    from lltool.eval.bench.schedule import Effort

    effort = Effort(arguments.repetitions, arguments.until, seconds=arguments.max_time, delay=arguments.delay)
    machine = describe_machine() | {"build": describe_build()}
    known: dict[str, Any] = {"machine": machine, "drift": find_drift(history, machine), "warm": not arguments.no_warmup}
    with _progress(arguments) as progress:
        if peers:
            from lltool.eval.bench.peers.pairing import measure_beside

            return measure_beside(points, peers, effort, progress=progress, **known)
        found = measure(points, effort, memory=not arguments.no_memory, progress=progress, **known)
    return [to_row(measurement) for measurement in found]


def _autotune(arguments: argparse.Namespace) -> int:
    from lltool.engine.tuning import keep_tuned
    from lltool.eval.bench.autotune import autotune, format_search

    if arguments.threads:
        raise InputError("--autotune looks for the best -t; leave out -t")
    found = []
    for path in arguments.model:
        size, search = autotune(path)
        file = keep_tuned(size, search.tuned)
        found.append({"model": str(path), **asdict(search.tuned), "decode_ns": search.decode, "batch_ns": search.batch})
        if arguments.output != "json":
            print(f"{path}\n\n{format_search(search)}\n")
        print(f"lltool: kept in {file}, the default for models of about this size", file=sys.stderr)
    if arguments.output == "json":
        print_json(found)
    return 0


def _profile(points: "Sequence[Point]", arguments: argparse.Namespace) -> int:
    from lltool.eval.bench.profile import profile
    from lltool.eval.bench.profile_tables import format_profiles, plot_profiles

    profiles = profile(points, arguments.repetitions)
    print(format_profiles(profiles, arguments.output))
    if arguments.plot:
        print(plot_profiles(profiles, arguments.plot), file=sys.stderr)
    return 0


def _find_peers(arguments: argparse.Namespace) -> "list[Peer]":
    """Those that are there; of another one a warning, or an error where that is asked for."""
    if not arguments.peer:
        return []
    from lltool.eval.bench.peers.specification import parse_peer

    peers = []
    for name in arguments.peer:
        peer = parse_peer(name)
        if missing := peer.find_missing():
            _warn(f"--peer {name}: {missing}", arguments)
        else:
            peers.append(peer)
    return peers


def _open_history(arguments: argparse.Namespace) -> Path | None:
    """A file that can be written, as is better known before the measurement; one that nobody named may be missing."""
    from lltool.eval.bench.history import default_database, keep

    if arguments.no_history:
        return None
    path: Path = arguments.db or default_database()
    try:
        keep(path, ())
    except (InputError, OSError) as error:
        if arguments.db:
            raise
        _warn(f"results are not kept: {error}", arguments)
        return None
    return path


def _plan(arguments: argparse.Namespace) -> "list[Point]":
    """The points to measure. What cannot be had is an error, or a warning once where it is measured without."""
    from lltool.eval.bench.plan import find_unmet, grid, resolve, with_tuned_threads, workloads

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
    if not arguments.threads:
        points = with_tuned_threads(points)
    for unmet in dict.fromkeys(unmet for point in points if (unmet := find_unmet(point.settings))):
        _warn(unmet, arguments)
    return points


def _warn(message: str, arguments: argparse.Namespace) -> None:
    if arguments.strict:
        raise InputError(message)
    print(f"lltool: warning: {message}", file=sys.stderr)


def _report(rows: "Sequence[Row]", history: Path | None, arguments: argparse.Namespace) -> None:
    from lltool.eval.bench.history import keep
    from lltool.eval.bench.tables import format_rows

    def show(form: str) -> str:
        if form != "md" or not has_peers:
            return format_rows(rows, form)
        from lltool.eval.bench.peers.ratio_tables import format_ratios

        return format_ratios(rows)

    has_peers = any(row["ratio"] is not None for row in rows)
    try:
        print(show(arguments.output), flush=True)
        if arguments.output_err:
            print(show(arguments.output_err), file=sys.stderr)
    finally:  # though nobody reads them any more
        if history:
            keep(history, rows)
    if not rows:
        return
    if arguments.plot:
        from lltool.eval.bench.plots import plot_rows

        print(plot_rows(rows, arguments.plot), file=sys.stderr)
    if arguments.save:
        for path in _save(rows, arguments.save, has_peers):
            print(path, file=sys.stderr)


def _save(rows: "Sequence[Row]", stem: Path, has_peers: bool) -> Iterator[Path]:
    """CSV, JSON and a picture."""
    from lltool.eval.bench.peers.ratio_tables import plot_ratios
    from lltool.eval.bench.plots import plot_rows
    from lltool.eval.bench.tables import format_rows
    from lltool.gguf.whole_file import whole_file

    for form in ("csv", "json"):
        target = stem.with_name(f"{stem.name}.{form}")
        with whole_file(target) as temporary:
            temporary.write_text(format_rows(rows, form) + "\n", encoding="utf-8")
        yield target
    yield (plot_ratios if has_peers else plot_rows)(rows, stem.with_name(f"{stem.name}.png"))


def _progress(arguments: argparse.Namespace) -> "AbstractContextManager[Progress]":
    from lltool.tools.progress import progress_bar

    if not arguments.progress:
        return progress_bar("run")

    def tell(done: int, total: int, note: str) -> None:
        if note:
            print(f"lltool: run {done + 1} of {total}: {note}", file=sys.stderr)

    return nullcontext(tell)
