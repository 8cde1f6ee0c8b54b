"""The settings of a benchmark and its workloads. A field's metadata is all that is known about it.

Names, defaults, columns and options are llama-bench's. The command line, grid, results, comparisons and plots ask here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from lltool.engine.batch import CacheType, Precision
from lltool.engine.cpu.threads import default_threads
from lltool.eval.bench.option_values import (
    Parser,
    one_of,
    parse_counts,
    parse_numbers,
    parse_overrides,
    parse_shares,
    parse_words,
)

_SQL_TYPES: dict[object, str] = {int: "INTEGER", bool: "BOOLEAN", float: "REAL"}  # others are TEXT
_SWITCH = {"0": False, "1": True}
_FLASH = {"on": 1, "enabled": 1, "true": 1, "1": 1, "off": 0, "disabled": 0, "false": 0, "0": 0, "auto": -1, "-1": -1}
_WITHOUT_GPU = "a model runs on one GPU, through -ngl and --device"
_MAPPED = "the file is mapped and used where it lies"
_CACHE = "the engine has no other type for its cache"


@dataclass(frozen=True)
class Axis:
    """How plots show a number that varies: an axis's title, the text in labels, the value of several to hold it at."""

    title: str
    label: str
    hold: Callable[[Sequence[Any]], Any] = max


@dataclass(frozen=True)
class Setting:
    """What is known about a field of Settings or Workload besides its type.

    `loop` is its place among llama-bench's nested loops, `place` the one in its Markdown table, where it has a `title`
    and a least `width`, below 0 for a column aligned to the left. `accepts` are the values that the engine accepts
    (none: any), and `reason` says why no others. `effect` gives the value in effect of one that was asked for. Rows
    with equal settings of `in_series` are repetitions of one measurement in the history.
    """

    options: tuple[str, ...]
    help: str
    parse: Parser[Any]
    loop: int = 0
    place: int = 0
    width: int = 0
    title: str = ""
    accepts: tuple[Any, ...] = ()
    reason: str = ""
    effect: Callable[[Any], Any] | None = None
    axis: Axis | None = None
    in_series: bool = False
    column: str = ""  # in CSV, JSON and SQL; empty: the field's name
    has_column: bool = True  # otherwise results hold it in the column "settings"
    name: str = ""  # of the field
    type: str = "TEXT"  # in SQL
    default: Any = None


def _setting(*what: Any, **more: Any) -> dict[str, Setting]:
    """The metadata of a field."""
    return {"setting": Setting(*what, **more)}


@dataclass(frozen=True)
class Settings:
    """One way to run one model; the fields stand in the order of llama-bench's columns."""

    model: Path
    # fmt: off
    batch: int = field(default=2048, metadata=_setting(("-b", "--batch-size"), "tokens submitted at once (default {})",
        parse_counts, loop=16, place=7, width=7, column="n_batch", axis=Axis("logical batch (tokens)", "batch {}"),
        in_series=True))
    ubatch: int = field(default=512, metadata=_setting(("-ub", "--ubatch-size"), "tokens computed at once (default {})",
        parse_counts, loop=17, place=8, width=8, column="n_ubatch", axis=Axis("physical batch (tokens)", "ubatch {}"),
        in_series=True))
    threads: int = field(default_factory=default_threads, metadata=_setting(("-t", "--threads"),
        "numbers of threads (default: what --autotune found, or one a core)", parse_counts, loop=22, place=3, width=7,
        title="threads", column="n_threads", axis=Axis("threads", "{} threads"), in_series=True))
    cpu_mask: str = field(default="0x0", metadata=_setting(("-C", "--cpu-mask"),
        "processors to run on, in hexadecimal (default {}: any)", parse_words, loop=23, place=4, width=-10))
    cpu_strict: bool = field(default=False, metadata=_setting(("--cpu-strict",),
        "1: each thread stays on one processor (default {})", one_of(_SWITCH), loop=24, place=5, width=10))
    poll: int = field(default=50, metadata=_setting(("--poll",),
        "0 to 100: how long idle threads spin before they sleep (default {})", parse_counts, loop=25, place=6,
        width=10))
    type_k: CacheType = field(default="f16", metadata=_setting(("-ctk", "--cache-type-k"),
        f"type of cached keys: {', '.join(get_args(CacheType))} (default {{}})", parse_words, loop=18, place=9, width=6,
        accepts=get_args(CacheType), reason=_CACHE, in_series=True))
    type_v: CacheType = field(default="f16", metadata=_setting(("-ctv", "--cache-type-v"),
        "values: the same types as -ctk (default {})", parse_words, loop=19, place=10, width=6,
        accepts=get_args(CacheType), reason=_CACHE, in_series=True))
    n_gpu_layers: int = field(default=-1, metadata=_setting(("-ngl", "--n-gpu-layers"),
        "layers on a GPU (default {}: as many as fit)", parse_numbers, loop=3, place=1, width=3, title="ngl",
        effect=lambda _: 0, axis=Axis("layers on the GPU", "{} GPU layers"), in_series=True))
    n_cpu_moe: int = field(default=0, metadata=_setting(("-ncmoe", "--n-cpu-moe"),
        "layers whose experts stay on the CPU (default {})", parse_counts, loop=4, place=2, width=10,
        effect=lambda _: 0))
    split_mode: str = field(default="layer", metadata=_setting(("-sm", "--split-mode"),
        "none or layer: how GPUs share a model (default {})", parse_words, loop=5, place=12, width=6, title="sm",
        accepts=("none", "layer"), reason=_WITHOUT_GPU, effect=lambda _: "none"))
    main_gpu: int = field(default=0, metadata=_setting(("-mg", "--main-gpu"),
        "{}: the GPU of a model that is not split", parse_counts, loop=8, place=11, width=10, accepts=(0,),
        reason=_WITHOUT_GPU))
    no_kv_offload: bool = field(default=False, metadata=_setting(("-nkvo", "--no-kv-offload"),
        "1: the cache stays in main memory (default {})", one_of(_SWITCH), loop=20, place=13, width=13, title="nkvo",
        effect=lambda _: True))
    # 1: on, 0: off, -1: the engine decides
    flash_attn: int = field(default=-1, metadata=_setting(("-fa", "--flash-attn"),
        "on or auto: flash attention (default auto)", one_of(_FLASH), loop=21, place=14, width=3, title="fa",
        accepts=(-1, 1), effect=lambda _: 1,
        reason="the engine has one form of attention, which never holds the whole matrix"))
    devices: str = field(default="auto", metadata=_setting(("-dev", "--device"),
        "auto (the first GPU), none, or a device of `lltool devices` (default {})", parse_words, loop=9, place=15,
        width=-12, title="dev", effect=lambda _: "none"))
    tensor_split: str = field(default="0.00", metadata=_setting(("-ts", "--tensor-split"), "0: shares of GPUs",
        parse_shares, loop=10, place=16, width=-12, title="ts", accepts=("0.00",), reason=_WITHOUT_GPU))
    tensor_buft_overrides: str = field(default="none", metadata=_setting(("-ot", "--override-tensor"),
        "{}: memory for tensors by name", parse_overrides, loop=11, place=17, width=-21, title="ot", accepts=("none",),
        reason=_WITHOUT_GPU))
    load_mode: str = field(default="auto", metadata=_setting(("-lm", "--load-mode"),
        "mmap, mlock, or none: read into memory (default {}: mmap)", parse_words, loop=6, place=18, width=10,
        title="lm", accepts=("auto", "none", "mmap", "mlock"), reason="the file is mapped, or read into memory",
        effect=lambda mode: "mmap" if mode == "auto" else mode))
    lazy_mode: str = field(default="auto", metadata=_setting(("-lzm", "--lazy-mode"), "auto or off (default {})",
        parse_words, loop=7, place=19, width=-10, accepts=("auto", "off"), reason=_MAPPED, effect=lambda _: "off"))
    embeddings: bool = field(default=False, metadata=_setting(("-embd", "--embeddings"), "{}: logits are computed",
        one_of(_SWITCH), loop=14, place=20, width=10, title="embd", accepts=(False,),
        reason="the bench computes logits"))
    no_op_offload: int = field(default=0, metadata=_setting(("-nopo", "--no-op-offload"),
        "1: no operation goes to a GPU (default {})", one_of({"0": 0, "1": 1}), loop=15, place=21, width=4,
        title="nopo", effect=lambda _: 0))
    no_host: bool = field(default=False, metadata=_setting(("--no-host",), "{}", one_of(_SWITCH), loop=12, place=22,
        width=4, title="noh", accepts=(False,), reason=_WITHOUT_GPU))
    repack: bool = field(default=False, metadata=_setting(("--repack",), "{}: weights are used as stored in the file",
        one_of(_SWITCH), loop=13, place=23, width=3, title="rpk", accepts=(False,), reason=_MAPPED))
    fit_target: int = field(default=0, metadata=_setting(("-fitt", "--fit-target"), "{}: MiB to leave free on a GPU",
        parse_counts, loop=1, place=24, width=10, title="fitt", accepts=(0,), reason=_WITHOUT_GPU))
    fit_min_ctx: int = field(default=0, metadata=_setting(("-fitc", "--fit-ctx"), "{}: the least context for -fitt",
        parse_counts, loop=2, place=25, width=11, title="fitc", accepts=(0,), reason=_WITHOUT_GPU))
    precision: Precision = field(default="int8", metadata=_setting(("--precision",),
        "int8 or f32, which is exact and slower (default {})", parse_words, loop=26, accepts=get_args(Precision),
        reason="the kernels have no other precision", has_column=False))
    lora: str = field(default="none", metadata=_setting(("--lora",),
        "adapters of a run, FILE[:SCALE] with + between several, or none (default {})", parse_words, loop=27,
        has_column=False))
    # fmt: on


@dataclass(frozen=True)
class Workload:
    """What is timed: `prompt` tokens at once, then `generation` tokens one by one, after `depth` tokens in the cache.

    With several `sequences` each of them does all of this, and all advance together.
    """

    # fmt: off
    prompt: int = field(metadata=_setting(("-p", "--n-prompt", "-npp"), "prompt tokens (default 512)", parse_counts,
        column="n_prompt"))
    generation: int = field(metadata=_setting(("-n", "--n-gen", "-ntg"), "generated tokens (default 128)", parse_counts,
        column="n_gen"))
    depth: int = field(default=0, metadata=_setting(("-d", "--n-depth"), "tokens already in the cache (default {})",
        parse_counts, column="n_depth", axis=Axis("depth (tokens already in the cache)", "depth {}", min)))
    sequences: int = field(default=1, metadata=_setting(("-npl",), "sequences at once, as in llama-batched-bench",
        parse_counts, column="n_parallel", axis=Axis("sequences at once", "{} sequences")))
    # fmt: on

    @property
    def tokens(self) -> int:
        """The tokens that the timed part computes, over all sequences."""
        return self.sequences * (self.prompt + self.generation)

    @property
    def context(self) -> int:
        """The tokens that one sequence holds at the end."""
        return self.depth + self.prompt + self.generation

    def columns(self) -> dict[str, Any]:
        """The values by column."""
        return {described.column: getattr(self, described.name) for described in WORKLOAD}

    def __str__(self) -> str:
        parts = [f"pp{self.prompt}"] if self.prompt else []
        parts += [f"tg{self.generation}"] if self.generation else []
        depth = f" @ d{self.depth}" if self.depth else ""
        return "+".join(parts) + depth + (f" x {self.sequences}" if self.sequences > 1 else "")


def _describe(owner: type[Settings] | type[Workload]) -> Iterator[Setting]:
    for f in fields(owner):
        if found := f.metadata.get("setting"):
            column = found.column or f.name
            type = _SQL_TYPES.get(f.type, "TEXT")
            yield replace(
                found, name=f.name, column=column, type=type, title=found.title or column, default=f.default,
                help=found.help.format(int(f.default) if isinstance(f.default, bool) else f.default),
            )  # fmt: skip


SETTINGS = tuple(_describe(Settings))
WORKLOAD = tuple(_describe(Workload))
