"""What a benchmark is asked to measure: the points of a grid, and what this engine makes of each.

Names, defaults and order of the settings are llama-bench's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

from lltool.engine.batch import CacheType, Precision
from lltool.engine.threads import Team, Threads, check_threads, default_threads, parse_mask
from lltool.engine.tuning import Tuned, read_tuned
from lltool.gguf.errors import InputError
from lltool.gguf.reader import open_gguf


@dataclass(frozen=True)
class Workload:
    """What is timed: `prompt` tokens at once, then `generation` tokens one by one, behind `depth` tokens of past.

    With several `sequences` each of them does all this, and all advance together.
    """

    prompt: int
    generation: int
    depth: int = 0
    sequences: int = 1

    @property
    def tokens(self) -> int:
        """Tokens that the timed part computes."""
        return self.sequences * (self.prompt + self.generation)

    @property
    def context(self) -> int:
        """Tokens that a sequence holds at the end."""
        return self.depth + self.prompt + self.generation

    def __str__(self) -> str:
        parts = [f"pp{self.prompt}"] if self.prompt else []
        parts += [f"tg{self.generation}"] if self.generation else []
        depth = f" @ d{self.depth}" if self.depth else ""
        return "+".join(parts) + depth + (f" x {self.sequences}" if self.sequences > 1 else "")


@dataclass(frozen=True)
class Run:
    """One repetition: nanoseconds in all, until the prompt's logits are there (0: no prompt), and of each token."""

    nanoseconds: int
    prompt_ns: int
    token_ns: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    """One way to run one model; the fields stand in the order in which llama-bench nests its loops."""

    model: Path
    fit_target: int = 0
    fit_min_ctx: int = 0
    n_gpu_layers: int = -1  # as many as there is room for
    n_cpu_moe: int = 0
    split_mode: str = "layer"
    load_mode: str = "auto"
    lazy_mode: str = "auto"
    main_gpu: int = 0
    devices: str = "auto"
    tensor_split: str = "0.00"
    tensor_buft_overrides: str = "none"
    no_host: bool = False
    repack: bool = False
    embeddings: bool = False
    no_op_offload: bool = False
    batch: int = 2048  # tokens submitted at once
    ubatch: int = 512  # tokens computed at once
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    no_kv_offload: bool = False
    flash_attn: int = -1  # 1: on, 0: off, -1: as the engine likes
    threads: int = field(default_factory=default_threads)
    cpu_mask: str = "0x0"
    cpu_strict: bool = False
    poll: int = 50
    precision: Precision = "int8"


@dataclass(frozen=True)
class Point:
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
    """At each depth one a prompt length, one a generation length, one a pair of both; a length of 0 is left out.

    With `sequences`, as llama-batched-bench: every prompt length with every generation length, in so many sequences.
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


def grid(models: Sequence[Path], runs: Sequence[Workload], **axes: Sequence[Any]) -> list[Point]:
    """All combinations: `axes` are values of fields of Settings by name; `runs` vary first, then the last field."""
    names = [f.name for f in fields(Settings) if f.name in axes]
    unknown = axes.keys() - set(names)
    assert not unknown, f"no settings {unknown}"
    points = [
        Point(Settings(model, **dict(zip(names, values, strict=True))), run)
        for model in models
        for values in product(*(axes[name] for name in names))
        for run in runs
    ]
    return list(dict.fromkeys(points))


def with_tuned_threads(points: Sequence[Point]) -> list[Point]:
    """The points with as many threads as a model that is loaded without a number gets (engine/tuning.py)."""
    tuned: dict[Path, Tuned | None] = {}
    for model in dict.fromkeys(point.settings.model for point in points):
        with open_gguf(model) as file:
            tuned[model] = read_tuned(file.size)
    found = []
    for point in points:
        kept, is_decode = tuned[point.settings.model], not point.workload.prompt and point.workload.sequences == 1
        threads = point.settings.threads if kept is None else kept.decode if is_decode else kept.batch
        found.append(replace(point, settings=replace(point.settings, threads=threads)))
    return found


# The values that the engine can have; of those in brackets, what it has in their place without a difference.
_WITHOUT_GPU = "this build computes on the CPU alone"
_POSSIBLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "fit_target": ((0,), _WITHOUT_GPU),
    "fit_min_ctx": ((0,), _WITHOUT_GPU),
    "split_mode": (("none", "layer"), _WITHOUT_GPU),
    "load_mode": (("auto", "none", "mmap", "mlock"), "the file is mapped, or read into memory"),
    "lazy_mode": (("auto", "off"), "the file is mapped and used where it lies"),
    "main_gpu": ((0,), _WITHOUT_GPU),
    "devices": (("auto", "none"), _WITHOUT_GPU),
    "tensor_split": (("0.00",), _WITHOUT_GPU),
    "tensor_buft_overrides": (("none",), _WITHOUT_GPU),
    "no_host": ((False,), _WITHOUT_GPU),
    "repack": ((False,), "the file is mapped and used where it lies"),
    "embeddings": ((False,), "the bench computes logits"),
    "type_k": (get_args(CacheType), "the engine has no other type for its cache"),
    "type_v": (get_args(CacheType), "the engine has no other type for its cache"),
    "flash_attn": ((-1, 1), "the engine has one attention, which never makes the whole matrix"),
    "precision": (("int8", "f32"), "the kernels have no other"),
}


def resolve(settings: Settings) -> Settings:
    """What really runs when this is asked for; two settings that give the same are one measurement.

    Raises InputError for what cannot be had, but for layers on a GPU, which `find_unmet` tells.
    """
    for name, (possible, reason) in _POSSIBLE.items():
        value = getattr(settings, name)
        if value not in possible:
            found, *wanted = (str(int(v) if isinstance(v, bool) else v) for v in (value, *possible))
            raise InputError(f"{name} {found}, wanted {' or '.join(wanted)}: {reason}")
    check_threads(threads_of(settings))
    for name in ("batch", "ubatch"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} {getattr(settings, name)}, wanted at least 1")
    return replace(
        settings,
        n_gpu_layers=0,
        n_cpu_moe=0,
        split_mode="none",
        load_mode="mmap" if settings.load_mode == "auto" else settings.load_mode,
        lazy_mode="off",
        devices="none",
        no_op_offload=False,
        no_kv_offload=True,
        flash_attn=1,
        ubatch=min(settings.batch, settings.ubatch),
    )


def find_unmet(settings: Settings) -> str | None:
    """What was asked for and is measured without."""
    if settings.n_gpu_layers in (-1, 0):  # -1: as many as there is room for
        return None
    return f"-ngl {settings.n_gpu_layers}: this build has no GPU executor, all layers ran on the CPU"


def threads_of(settings: Settings) -> Threads:
    """Raises InputError for a mask that is none."""
    team = Team(settings.threads, tuple(sorted(parse_mask(settings.cpu_mask))), settings.cpu_strict)
    return Threads(team, team, settings.poll)
