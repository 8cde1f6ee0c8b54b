"""LoRA adapters in GGUF files, and the operations that they add to a Program."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.operations.embed import Embed
from lltool.engine.operations.experts import ExpertLinear
from lltool.engine.operations.linear import Linear
from lltool.engine.operations.low_rank import LowRank, LowRankEmbed, Update
from lltool.engine.program import Operation, Program, Weight
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import ValueType
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.quant.codec import decode

MERGE_IT = "merge the adapter instead: lltool convert CHECKPOINT --lora ADAPTER"

Floats = NDArray[Any]
_DTYPES: dict[GGMLType, type[np.generic]] = {
    GGMLType.F32: np.float32,
    GGMLType.F16: np.float16,
    GGMLType.BF16: np.uint16,
}
"""The types in which factors are kept, and numpy's types of their numbers; bfloat16 has the integers of its bits."""


@dataclass(frozen=True)
class Factors:
    """The two matrices of an adapter for a matrix of its base, as the file has them, or stacks of them.

    `a` is (rank, in), or (vocabulary, rank) for the embedding; `b` is (out, rank). Both are of `type`, one of _DTYPES.
    """

    type: GGMLType
    a: Floats
    b: Floats

    @property
    def rank(self) -> int:
        return int(self.b.shape[-1])


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter that a model was loaded with; `id` is its number, and `scale` the one that sequences have by default.

    `rank` is the largest of its matrices, and `digest` the SHA-256 of its file.
    """

    id: int
    path: Path
    scale: float
    architecture: str
    alpha: float
    factors: dict[str, Factors]
    digest: str

    @property
    def rank(self) -> int:
        return max(factors.rank for factors in self.factors.values())


def open_adapter(path: str | PathLike[str], scale: float = 1.0, id: int = 0) -> Adapter:
    """Reads an adapter's file, which llama.cpp's converter may have made.

    Raises InputError for a file that is cut off or is no such adapter, for NaN and infinity, and for parts that are no
    factors.
    """
    if not np.isfinite(scale):
        raise InputError(f"{path}: the scale of an adapter is {scale}, wanted a finite number")
    with open_gguf(Path(path)) as file:
        kind, type = (_text(file, key) for key in ("general.type", "adapter.type"))
        if kind != "adapter" or type != "lora":
            found = "a model" if kind in ("", "model") else f"general.type {kind!r} and adapter.type {type!r}"
            raise InputError(f"{path}: found {found}, wanted a LoRA adapter; lltool convert makes one of peft's folder")
        if "adapter.alora.invocation_tokens" in file.metadata:
            raise InputError(
                f"{path}: is an activated LoRA (aLoRA), which this version cannot run; use it with llama.cpp"
            )
        alpha = file.metadata.get("adapter.lora.alpha")
        if alpha is None or alpha.type != ValueType.FLOAT32 or not np.isfinite(alpha.data):
            raise InputError(f"{path}: adapter.lora.alpha is {alpha and alpha.data}, wanted a finite float32")
        names = {tensor.name for tensor in file.tensors}
        factors: dict[str, Factors] = {}
        for name in sorted(names):
            base, _, part = name.rpartition(".")
            if part not in ("lora_a", "lora_b"):
                raise InputError(f"{path}: {name}: no factor of low rank, which is all that runs; {MERGE_IT}")
            if f"{base}.lora_a" not in names or f"{base}.lora_b" not in names:
                raise InputError(f"{path}: {base}: has only one of lora_a and lora_b; the file is damaged")
            if part == "lora_a":
                factors[base] = _factors(file, base)
        if not factors:
            raise InputError(f"{path}: holds no factors; is the adapter empty?")
        return Adapter(
            id,
            Path(path),
            float(scale),
            _text(file, "general.architecture"),
            float(alpha.data),
            factors,
            sha256_of(file.paths),
        )


def scales_of(adapters: Sequence[Adapter], scales: Sequence[float] | None = None) -> tuple[float, ...]:
    """The scales of all adapters (default: each one's own). Raises InputError for another number, NaN and infinity."""
    if scales is None:
        return tuple(adapter.scale for adapter in adapters)
    if len(scales) != len(adapters) or not np.isfinite(scales).all():
        raise InputError(f"scales {list(scales)}, wanted a finite number for each of {len(adapters)} adapters")
    return tuple(map(float, scales))


def scaled_path(text: str) -> tuple[Path, float]:
    """An adapter's file and its scale, from `FILE` or `FILE:SCALE`."""
    name, _, scale = text.rpartition(":")
    try:
        return (Path(name), float(scale)) if name and not Path(text).exists() else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def adapt_program(program: Program, architecture: str, adapters: Sequence[Adapter]) -> Program:
    """The program with what the adapters add after each product with a matrix that they change.

    It must come last, since the operations write where others have written. Raises InputError for an adapter of another
    base and for matrices that it cannot change.
    """
    ops: list[Operation] = []
    weights = dict(program.weights)
    left = {adapter: set(adapter.factors) for adapter in adapters}
    for adapter in adapters:
        if adapter.architecture != architecture:
            stated = adapter.architecture or "(none)"
            raise InputError(f"{adapter.path}: is for the architecture {stated}, and the model's is {architecture}")
    for op in program.ops:
        ops.append(op)
        updates: list[Update] = []
        for adapter in adapters:
            for output, name, part in _products(op):
                if found := adapter.factors.get(name):
                    update = _update(adapter, name, found, op, output, part, program.weights[name])
                    updates.append(update[0])
                    weights |= {weight.name: weight for weight in update[1]}
                    left[adapter].discard(name)
        if not updates:
            continue
        if isinstance(op, Embed):
            ops.append(LowRankEmbed((op.out,), tuple(updates)))
        elif isinstance(op, Linear):
            ops.append(LowRank(op.x, op.outs, tuple(updates)))
        elif isinstance(op, ExpertLinear):
            ops.append(LowRank(op.x, op.outs, tuple(updates), op.chosen))
    for adapter, names in left.items():
        for name in sorted(names):
            reason = "the model has no such matrix; is it its base?" if name not in program.weights else MERGE_IT
            raise InputError(f"{adapter.path}: {name}: cannot be changed while the model runs: {reason}")
    return replace(program, ops=tuple(ops), weights=weights)


def _products(op: Operation) -> list[tuple[int, str, slice]]:
    """The outputs of an operation with their matrices, and the rows of these that they take."""
    if isinstance(op, Embed):
        return [(0, op.weight, slice(None))]
    if isinstance(op, Linear):
        is_tied = any(name == "token_embd.weight" for name in op.weights)  # an adapter's is for the embedding alone
        return [] if is_tied else list(zip(range(len(op.outs)), op.weights, op.parts, strict=True))
    if isinstance(op, ExpertLinear):
        return [(index, name, slice(None)) for index, name in enumerate(op.weights)]
    return []


def _update(
    adapter: Adapter, name: str, factors: Factors, op: Operation, output: int, part: slice, base: Weight
) -> tuple[Update, list[Weight]]:
    a, b = factors.a, factors.b
    is_embedding = isinstance(op, Embed)
    made = (*b.shape[:-1], a.shape[-1]) if not is_embedding else (a.shape[0], b.shape[0])
    inner = a.shape[-1] if is_embedding else a.shape[-2]
    if a.ndim != len(base.shape) or b.ndim != a.ndim or made != base.shape or a.shape[:-2] != b.shape[:-2]:
        raise InputError(
            f"{adapter.path}: {name}: factors {a.shape} and {b.shape}, but the model's matrix is {base.shape}; "
            "is it the adapter of another model?"
        )
    if not factors.rank or inner != factors.rank:
        raise InputError(f"{adapter.path}: {name}: ranks {inner} and {factors.rank}, wanted the same, of at least 1")
    down = a if is_embedding else a.swapaxes(-1, -2)
    up = b[..., part, :].swapaxes(-1, -2)
    stem = f"adapter.{adapter.id}.{name}"
    factor = (adapter.alpha / factors.rank if adapter.alpha else 1.0) * (op.scale if isinstance(op, Embed) else 1.0)
    return (
        Update(adapter.id, factor, output, f"{stem}.down", f"{stem}.up.{output}"),
        [_weight(f"{stem}.down", factors.type, down), _weight(f"{stem}.up.{output}", factors.type, up)],
    )


def _weight(name: str, type: GGMLType, values: Floats) -> Weight:
    whole = np.ascontiguousarray(values)
    return Weight(name, type, values.shape, whole.reshape(-1, values.shape[-1]).view(np.uint8))


def _factors(file: GGUFFile, base: str) -> Factors:
    """The factors as they are stored if both have one type of floats, else as float32."""
    pair = [file.tensor(f"{base}.{part}") for part in ("lora_a", "lora_b")]
    kind = pair[0].type if pair[0].type == pair[1].type and pair[0].type in _DTYPES else GGMLType.F32
    found = []
    for tensor in pair:
        if len(tensor.shape) not in (2, 3):
            raise InputError(f"{file.path}: {tensor.name}: shape {tensor.shape}, wanted a matrix or a stack of them")
        data = np.array(tensor.data())  # a copy, as the file is closed
        values = decode(data, tensor.type)
        if not np.isfinite(values).all():
            raise InputError(f"{file.path}: {tensor.name}: holds NaN or infinity; the adapter is damaged")
        found.append((data.view(_DTYPES[kind]) if kind == tensor.type else values).reshape(tensor.shape))
    return Factors(kind, found[0], found[1])


def _text(file: GGUFFile, key: str) -> str:
    value = file.metadata.get(key)
    return str(value.data) if value is not None and value.type == ValueType.STRING else ""
