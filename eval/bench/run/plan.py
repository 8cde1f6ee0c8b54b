"""The points of a benchmark's grid, and the settings that this engine uses for each of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from lltool.engine.cpu.threads import Team, Threads, check_threads, parse_mask
from lltool.engine.cpu.tuning import Tuned, read_tuned
from lltool.engine.gpu.device import DeviceInfo
from lltool.engine.gpu.placement import Placement, choose_device
from lltool.eval.bench.settings import SETTINGS, Settings, Workload
from lltool.gguf.errors import InputError
from lltool.gguf.reader import open_gguf

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TimedRun:
    """One repetition: nanoseconds in total, until the prompt's logits are there (0: no prompt), and for each token."""

    nanoseconds: int
    prompt_ns: int
    token_ns: tuple[int, ...] = ()


@dataclass(frozen=True)
class GridPoint:
    """One test of the grid."""

    settings: Settings
    workload: Workload


def workloads(
    prompts: Sequence[int] = (512,),
    generations: Sequence[int] = (128,),
    pairs: Sequence[tuple[int, int]] = (),
    depths: Sequence[int] = (0,),
    sequences: Sequence[int] = (),
) -> list[Workload]:
    """For each depth, a workload for each prompt length, generation length and pair of both; lengths of 0 drop out.

    With `sequences`, as in llama-batched-bench, every prompt length is paired with every generation length, for each
    number of sequences. Raises InputError if no workload is left.
    """
    if sequences:
        lengths = [*product(prompts, generations), *pairs]
    else:
        lengths = [(n, 0) for n in prompts] + [(0, n) for n in generations] + list(pairs)
    found = [
        Workload(prompt, generation, depth, count)
        for depth in depths
        for prompt, generation in lengths
        for count in sequences or (1,)
        if prompt or generation
    ]
    if not found:
        raise InputError("nothing to measure: wanted a prompt or generation length above 0")
    return list(dict.fromkeys(found))


def grid(models: Sequence[Path], runs: Sequence[Workload], **axes: Sequence[Any]) -> list[GridPoint]:
    """All combinations: `axes` are values of settings by name; `runs` vary fastest, the others as in llama-bench."""
    names = [setting.name for setting in sorted(SETTINGS, key=lambda setting: setting.loop) if setting.name in axes]
    unknown = axes.keys() - set(names)
    assert not unknown, f"no settings {unknown}"
    points = [
        GridPoint(Settings(model, **dict(zip(names, values, strict=True))), run)
        for model in models
        for values in product(*(axes[name] for name in names))
        for run in runs
    ]
    return list(dict.fromkeys(points))


def plan_points(models: Sequence[Path], runs: Sequence[Workload], **axes: Sequence[Any]) -> list[GridPoint]:
    """The points of a grid; where no threads are given, with those that a model gets then.

    Raises InputError for settings that the engine does not support.
    """
    points = grid(models, runs, **axes)
    for point in points:
        resolve(point.settings)
    return points if axes.get("threads") else with_tuned_threads(points)


def unmet_of(points: Sequence[GridPoint]) -> list[str]:
    """A warning for each setting that a measurement of these points ignores."""
    return list(dict.fromkeys(unmet for point in points if (unmet := find_unmet(point.settings))))


def with_tuned_threads(points: Sequence[GridPoint]) -> list[GridPoint]:
    """The points with the number of threads that a model gets if none is given (engine/cpu/tuning.py)."""
    tuned: dict[Path, Tuned | None] = {}
    for model in dict.fromkeys(point.settings.model for point in points):
        with open_gguf(model) as file:
            tuned[model] = kept = read_tuned(file.size)
        if kept and kept.is_unusual:
            _log.warning("%s: %s", model.name, kept.describe())
    found = []
    for point in points:
        kept, is_decode = tuned[point.settings.model], not point.workload.prompt and point.workload.sequences == 1
        threads = point.settings.threads if kept is None else kept.decode if is_decode else kept.batch
        found.append(replace(point, settings=replace(point.settings, threads=threads)))
    return found


def resolve(settings: Settings) -> Settings:
    """The settings in effect if these are asked for; points for which they are equal are measured once.

    Raises InputError for settings that the engine does not support, except layers on a GPU, which `find_unmet` reports.
    """
    for setting in SETTINGS:
        value = getattr(settings, setting.name)
        if setting.accepts and value not in setting.accepts:
            found, *wanted = (str(int(v) if isinstance(v, bool) else v) for v in (value, *setting.accepts))
            raise InputError(f"{setting.name} {found}, wanted {' or '.join(wanted)}: {setting.reason}")
    check_threads(threads_of(settings))
    for name in ("batch", "ubatch"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} {getattr(settings, name)}, wanted at least 1")
    effects = {s.name: s.effect(getattr(settings, s.name)) for s in SETTINGS if s.effect}
    if device := device_of(settings):
        effects |= {"n_gpu_layers": settings.n_gpu_layers, "devices": device.id}
    return replace(settings, **effects, ubatch=min(settings.batch, settings.ubatch))


def device_of(settings: Settings) -> DeviceInfo | None:
    """The device that runs some of the layers; None if all are on the CPU. Raises InputError for an unknown device."""
    if settings.n_gpu_layers == 0 or settings.devices == "none":
        return None
    return choose_device(None if settings.devices == "auto" else settings.devices)


def distinct(points: Sequence[GridPoint]) -> tuple[list[GridPoint], list[str]]:
    """The points that differ in what runs, each as it was first asked for, and a note for each setting of the others.

    Raises InputError as `resolve` does.
    """
    first: dict[tuple[Settings, Workload], GridPoint] = {}
    notes: dict[str, None] = {}
    for point in points:
        kept = first.setdefault((resolve(point.settings), point.workload), point)
        for setting in SETTINGS:
            asked, same = (getattr(of.settings, setting.name) for of in (point, kept))
            if asked != same:
                option = setting.options[0]
                notes[f"{option} {asked} runs the same as {option} {same}, so the tests of both are run once"] = None
    return list(first.values()), list(notes)


def find_unmet(settings: Settings) -> str | None:
    """A warning about a setting that the measurement ignores, or None."""
    if settings.n_gpu_layers in (-1, 0) or device_of(settings):  # -1: as many as fit
        return None
    return f"-ngl {settings.n_gpu_layers}: no GPU was found, all layers ran on the CPU"


def placement_of(ran: Settings) -> Placement | None:
    """Where the layers run with settings in effect, which name a device if there is one; None if all are on the CPU."""
    if ran.devices in ("none", "auto"):
        return None
    return Placement("auto" if ran.n_gpu_layers < 0 else ran.n_gpu_layers, ran.devices)


def threads_of(settings: Settings) -> Threads:
    """The threads that these settings ask for. Raises InputError for an invalid processor mask."""
    team = Team(settings.threads, tuple(sorted(parse_mask(settings.cpu_mask))), settings.cpu_strict)
    return Threads(team, team, settings.poll)
