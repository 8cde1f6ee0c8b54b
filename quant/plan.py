"""The plan for quantizing a file, made before any weight is read: types, sizes, memory and time."""

import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType, row_bytes
from lltool.gguf.metadata import Value
from lltool.gguf.reader import GGUFFile
from lltool.gguf.source import Model
from lltool.quant.choose import (
    DEFAULTS,
    PLAIN,
    ChosenType,
    Options,
    check_choices,
    check_patterns,
    choose_types,
    describe_fallbacks,
)
from lltool.quant.codec import NEEDS_IMPORTANCE, encode
from lltool.quant.edits import prune_layers
from lltool.quant.guidance import Guidance
from lltool.quant.recipe_language import Recipe
from lltool.quant.recipes import find_recipe

BUFFER_BYTES = 80 << 20
"""Default size of the buffers for the rows in memory, as float32 and in their new types."""

_BYTES_PER_WEIGHT = 20  # of buffers: 4 as float32, 8 for two windows of at most float32, 8 to decode for the error
_FIXED_BYTES = 256 << 20  # the interpreter, its libraries, 128 MiB of the mapped source, memory the allocator retains


@dataclass(frozen=True)
class Request:
    """The user's wishes for a file, besides the recipe and the `Options` for types."""

    guidance: Guidance | None = None
    prune: Collection[int] = ()
    overrides: Mapping[str, Value] = field(default_factory=dict)
    keep_split: bool = False
    allow_requantize: bool = False
    strict: bool = False  # a fallback is an error


NOTHING_MORE = Request()


@dataclass(frozen=True)
class Plan:
    """The plan for quantizing one file. No weight is computed until the plan is written.

    `model` is the file's, with keys overridden and blocks pruned as requested; `names` maps the names of its tensors to
    their names in the file.
    """

    file: GGUFFile
    model: Model
    names: Mapping[str, str]
    recipe: Recipe
    options: Options
    request: Request
    choices: Sequence[ChosenType]
    notes: Sequence[str]

    @property
    def is_guided(self) -> bool:
        return self.request.guidance is not None

    @property
    def weights(self) -> int:
        return sum(choice.tensor.rows * choice.tensor.columns for choice in self.choices)

    @property
    def source_bytes(self) -> int:
        """The bytes of tensor data in the source."""
        return sum(choice.tensor.nbytes for choice in self.choices)

    @property
    def bytes(self) -> int:
        """The bytes of tensor data in the new file."""
        return sum(size_of(choice) for choice in self.choices)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights

    def changes(self) -> Counter[tuple[GGMLType, GGMLType]]:
        """The number of tensors for each pair of old and new type."""
        return Counter((choice.tensor.type, choice.type) for choice in self.choices)

    def default_path(self) -> Path:
        return self.file.path.with_name(f"{model_name(self.file.path)}-{self.recipe.name}.gguf")

    def shard_sizes(self) -> list[int] | None:
        """The number of tensors in each shard if the source's shards are kept, else None."""
        if not self.request.keep_split:
            return None
        kept = set(self.names.values())
        tensors = iter(self.file.tensors)
        return [sum(next(tensors).name in kept for _ in range(size)) for size in self.file.shard_sizes]


def model_name(path: Path) -> str:
    """The name of a full-precision model's file without shard number and type: `m` for `m-F16.gguf`."""
    name = re.sub(r"-\d{5}-of-\d{5}$", "", path.name.removesuffix(".gguf"))
    return re.sub(r"(?<=.)[-._](bf16|fp?16|fp?32)$", "", name, flags=re.IGNORECASE)


def size_of(choice: ChosenType) -> int:
    """The bytes of the tensor in its new type."""
    return choice.tensor.rows * row_bytes(choice.type, choice.tensor.columns)


def plan_quantization(
    file: GGUFFile, recipe: str | Recipe, options: Options = DEFAULTS, request: Request = NOTHING_MORE
) -> Plan:
    """Chooses the type of each tensor.

    Raises InputError for an unknown recipe, for tensors that are already quantized unless that is allowed, for types
    that need importance if none is given, for importance of another model, for options that no tensor matches, and,
    if the request is strict, for a shape that does not allow the recipe's type.
    """
    if isinstance(recipe, str):
        recipe = find_recipe(recipe)
    if not file.tensors:
        raise InputError(f"{file.path}: has no tensors to quantize")
    model = Model({**file.metadata, **request.overrides}, file.tensors)
    whole = model.metadata  # as in llama-quantize, rules still see the number of blocks before pruning
    names = {tensor.name: tensor.name for tensor in file.tensors}
    if request.prune:
        model, names = prune_layers(model, request.prune, str(file.path))
    check_patterns(model, options)
    guidance = request.guidance
    try:
        choices = choose_types(Model(whole, model.tensors), recipe, options, has_importance=guidance is not None)
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from None
    check_choices(choices, str(file.path), has_importance=guidance is not None)
    notes = describe_fallbacks(choices)
    if request.strict and notes:
        raise InputError(f"{file.path}: {'; '.join(notes)}; drop --strict to accept that")
    for choice in choices:
        tensor = choice.tensor
        if choice.type != tensor.type and tensor.type not in PLAIN and not request.allow_requantize:
            raise InputError(
                f"{file.path}: {tensor.name} is already {tensor.type.name}, which lost quality once; "
                f"quantize from the F16, BF16 or F32 file, or give --allow-requantize"
            )
    if guidance is not None:
        notes += guidance.check(choices, names, {tensor.name for tensor in file.tensors})
    return Plan(file, model, names, recipe, options, request, choices, notes)


def window_weights(buffer_bytes: int) -> int:
    """The number of weights that are read, encoded and written at a time."""
    return min(buffer_bytes, BUFFER_BYTES) // _BYTES_PER_WEIGHT


class Chosen(Protocol):
    """A plan as far as memory and time depend on it."""

    @property
    def choices(self) -> Sequence[ChosenType]: ...

    @property
    def is_guided(self) -> bool: ...


def estimate_memory(plans: Sequence[Chosen], buffer_bytes: int = BUFFER_BYTES) -> int:
    """The most bytes of memory that writing the plans takes. One row always fits, however small the buffer is."""
    widest = max((choice.tensor.columns for plan in plans for choice in plan.choices), default=0)
    return _FIXED_BYTES + max(window_weights(buffer_bytes), widest) * _BYTES_PER_WEIGHT


def estimate_seconds(plans: Sequence[Chosen], threads: int | None = None) -> float:
    """Estimated seconds to encode, from a trial of each type on random weights; the disk may take longer."""
    weights: Counter[tuple[GGMLType, bool]] = Counter()
    for plan in plans:
        for choice in plan.choices:
            if choice.type != choice.tensor.type:
                weights[choice.type, plan.is_guided] += choice.tensor.rows * choice.tensor.columns
    sample = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    seconds = 0.0
    for (type, is_guided), count in weights.items():
        importance = np.ones(1024, np.float32) if is_guided or type in NEEDS_IMPORTANCE else None
        encode(sample[:8], type, importance, threads)  # builds the tables that the type's encoder searches
        started = time.perf_counter()
        encode(sample, type, importance, threads)
        seconds += (time.perf_counter() - started) * count / sample.size
    return seconds
