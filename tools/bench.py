"""`lltool bench`: measures models in tokens a second over a grid of settings, with llama-bench's options."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.tools.arguments import output_to, print_json, take_models
from lltool.tools.bench_arguments import parse_arguments
from lltool.tools.bench_arguments import parser as parser  # for the help and completion
from lltool.tools.bench_through import bench_through
from lltool.tools.engine_arguments import set_priority
from lltool.tools.talk import note

if TYPE_CHECKING:
    from lltool.eval.bench.peers.peer import Peer
    from lltool.eval.bench.results.rows import ResultRow, Results
    from lltool.eval.bench.run.plan import GridPoint
    from lltool.eval.common.steps import TitledProgress


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv)
    if arguments.through or arguments.clients or arguments.long_prompt or arguments.api_key:
        return bench_through(arguments)
    arguments.model = take_models(arguments)
    if arguments.autotune:
        return _autotune(arguments)
    from lltool.eval.bench.results.record import Interrupted

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
    points: "Sequence[GridPoint]", peers: "Sequence[Peer]", history: Path | None, arguments: argparse.Namespace
) -> "Results":
    from lltool.eval.bench.machine.environment import describe_build, describe_machine
    from lltool.eval.bench.results.history import find_drift
    from lltool.eval.bench.run.measure import measure_points
    from lltool.eval.bench.run.schedule import Effort

    effort = Effort(arguments.repetitions, arguments.until, seconds=arguments.max_time, delay=arguments.delay)
    machine = describe_machine() | {"build": describe_build()}
    known: dict[str, Any] = {"machine": machine, "drift": find_drift(history, machine), "warm": not arguments.no_warmup}
    with _progress(arguments) as progress:
        if peers:
            from lltool.eval.bench.peers.pairing import measure_beside

            return measure_beside(points, peers, effort, progress=progress, **known)
        return measure_points(points, effort, memory=not arguments.no_memory, progress=progress, **known)


def _autotune(arguments: argparse.Namespace) -> int:
    from lltool.engine.cpu.tuning import keep_tuned
    from lltool.eval.bench.run.autotune import autotune, describe_search, format_search

    if arguments.threads:
        raise InputError("--autotune searches for the best -t; leave out -t")
    found, are_judged = [], True
    for path in arguments.model:
        size, search = autotune(path)
        medians = {"decode_ns": search.decode.medians, "batch_ns": search.batch.medians}
        found.append({"model": str(path), "judged": search.is_judged, **asdict(search.tuned), **medians})
        if arguments.format != "json":
            print(f"{path}\n\n{format_search(search)}\n")
        if search.is_judged:
            note(f"kept in {keep_tuned(size, search.tuned)}, the default for models of about this size")
        else:
            are_judged = False
            note(f"{path}: {describe_search(search)}; nothing was kept, try again when the machine is quiet")
    if arguments.format == "json":
        print_json(found)
    return 0 if are_judged else 1


def _profile(points: "Sequence[GridPoint]", arguments: argparse.Namespace) -> int:
    from lltool.eval.bench.profile.measure import profile
    from lltool.eval.bench.profile.tables import format_profiles, plot_profiles

    profiles = profile(points, arguments.repetitions)
    with output_to(arguments.output):
        print(format_profiles(profiles, arguments.format))
    if arguments.plot:
        print(plot_profiles(profiles, arguments.plot), file=sys.stderr)
    return 0


def _find_peers(arguments: argparse.Namespace) -> "list[Peer]":
    """The peers that are installed; warns about others, or raises InputError with --strict."""
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
    """The history, which is opened for writing before anything is measured; only the default one may be unusable."""
    from lltool.eval.bench.results.history import default_database, keep

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


def _plan(arguments: argparse.Namespace) -> "list[GridPoint]":
    """The points to measure; warns once about each setting that is ignored, and raises InputError for bad ones."""
    from lltool.eval.bench.run.plan import distinct, plan_points, unmet_of, workloads
    from lltool.eval.bench.settings import SETTINGS

    runs = workloads(
        arguments.n_prompt or (512,),
        arguments.n_gen or (128,),
        arguments.pg,
        arguments.n_depth or (0,),
        arguments.n_parallel or (),
    )
    asked = {setting.name: getattr(arguments, setting.name) for setting in SETTINGS}
    points = plan_points(arguments.model, runs, **{name: values for name, values in asked.items() if values})
    for unmet in unmet_of(points):
        _warn(unmet, arguments)
    points, repeated = distinct(points)
    for text in repeated:
        note(text)
    return points


def _warn(message: str, arguments: argparse.Namespace) -> None:
    if arguments.strict:
        raise InputError(message)
    note(message)


def _report(rows: "Sequence[ResultRow]", history: Path | None, arguments: argparse.Namespace) -> None:
    from lltool.eval.bench.results.history import keep
    from lltool.eval.bench.results.tables import format_rows

    def show(form: str) -> str:
        if form != "md" or not has_peers:
            return format_rows(rows, form)
        from lltool.eval.bench.peers.ratio_tables import format_ratios

        return format_ratios(rows)

    has_peers = any(row.ratio is not None for row in rows)
    try:
        with output_to(arguments.output):
            print(show(arguments.format), flush=True)
        if arguments.output_err:
            print(show(arguments.output_err), file=sys.stderr)
    finally:  # keep the rows even if nobody reads the output any more
        if history:
            keep(history, rows)
    if not rows:
        return
    if arguments.plot:
        from lltool.eval.bench.plots.speed import plot_rows

        print(plot_rows(rows, arguments.plot), file=sys.stderr)
    if arguments.save:
        from lltool.eval.bench.peers.ratio_tables import plot_ratios
        from lltool.eval.bench.plots.speed import plot_rows
        from lltool.eval.bench.results.save import save_results

        draw = plot_ratios if has_peers else plot_rows
        show_form, draw_to = (lambda form: format_rows(rows, form)), (lambda target: draw(rows, target))
        for path in save_results(arguments.save, show_form, draw_to):
            print(path, file=sys.stderr)


def _progress(arguments: argparse.Namespace) -> "AbstractContextManager[TitledProgress]":
    from lltool.tools.progress import progress_bar

    if not arguments.progress:
        return progress_bar("run")

    def tell(done: int, total: int, title: str) -> None:
        if title:
            print(f"run {done + 1} of {total}: {title}", file=sys.stderr)

    return nullcontext(tell)
