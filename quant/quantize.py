"""GGUF to smaller GGUF: `open → retype by recipe → write`."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType, row_bytes
from lltool.gguf.metadata import Value, string, u32
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.gguf.source import Model
from lltool.gguf.writer import write_gguf
from lltool.quant.choose import DEFAULTS, PLAIN, Choice, Options, check_choices, choose_types, describe_fallbacks
from lltool.quant.codec import BadWeights
from lltool.quant.recipe_language import Recipe
from lltool.quant.recipes import find_recipe
from lltool.quant.retype import retype_tensor

QUANTIZATION_VERSION = 2  # of ggml's block formats


@dataclass(frozen=True)
class Plan:
    """What quantizing a file will do. Nothing is computed until it is written."""

    file: GGUFFile
    recipe: Recipe
    options: Options
    choices: Sequence[Choice]

    @property
    def weights(self) -> int:
        return sum(choice.tensor.rows * choice.tensor.columns for choice in self.choices)

    @property
    def source_bytes(self) -> int:
        """Of tensor data."""
        return sum(choice.tensor.nbytes for choice in self.choices)

    @property
    def bytes(self) -> int:
        """Of tensor data, when it is written."""
        return sum(c.tensor.rows * row_bytes(c.type, c.tensor.columns) for c in self.choices)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights

    def changes(self) -> Counter[tuple[GGMLType, GGMLType]]:
        """How many tensors go from which type to which."""
        return Counter((choice.tensor.type, choice.type) for choice in self.choices)

    def default_path(self) -> Path:
        return self.file.path.with_name(f"ggml-model-{self.recipe.name}.gguf")


@dataclass(frozen=True)
class Report:
    """A quantization that was done; sizes are bytes of tensor data."""

    path: Path
    plan: Plan
    seconds: float


def quantize_file(
    source: str | Path,
    target: str | Path | None,
    type: str,
    options: Options = DEFAULTS,
    *,
    allow_requantize: bool = False,
    strict: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Quantizes the GGUF file `source` to `target`, by default `ggml-model-TYPE.gguf` beside it.

    Tensor bytes are those of llama-quantize. Raises InputError as `plan_quantization` and `write_plan` do.
    """
    with open_gguf(source) as file:
        plan = plan_quantization(file, type, options, allow_requantize=allow_requantize, strict=strict)
        return write_plan(plan, target, threads=threads, progress=progress)


def plan_quantization(
    file: GGUFFile, type: str, options: Options = DEFAULTS, *, allow_requantize: bool = False, strict: bool = False
) -> Plan:
    """Chooses the type of each tensor.

    Raises InputError for an unknown file type, for tensors that are quantized already unless `allow_requantize`, and
    with `strict` where a shape does not allow the type that the recipe wants.
    """
    recipe = find_recipe(type)
    plan = Plan(file, recipe, options, choose_types(file, recipe, options))
    check_choices(plan.choices, str(file.path))
    for choice in plan.choices:
        tensor = choice.tensor
        if choice.type == tensor.type:
            continue
        if tensor.type not in PLAIN and not allow_requantize:
            raise InputError(
                f"{file.path}: {tensor.name} is {tensor.type.name} already, which lost quality once; "
                f"quantize from the F16, BF16 or F32 file, or give --allow-requantize"
            )
    if strict and (fallbacks := describe_fallbacks(plan.choices)):
        raise InputError(f"{file.path}: {'; '.join(fallbacks)}; drop --strict to accept that")
    return plan


def write_plan(
    plan: Plan,
    target: str | Path | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Carries out a plan. Raises InputError for weights that are not finite and for what `write_gguf` refuses."""
    started = time.monotonic()
    path = Path(target) if target else plan.default_path()
    tensors = [retype_tensor(choice.tensor, choice.type, threads) for choice in plan.choices]
    try:
        write_gguf(path, Model(_metadata(plan), tensors), progress=progress, inputs=plan.file.paths)
    except BadWeights as error:
        raise InputError(f"{plan.file.path}: {error}") from error
    return Report(path, plan, time.monotonic() - started)


def _metadata(plan: Plan) -> dict[str, Value]:
    """The source's, with the new file type and how this file was made."""
    return {
        **plan.file.metadata,
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        "general.file_type": u32(plan.recipe.file_type or 0),
        "lltool.version": string(version("lltool")),
        "lltool.quantize.recipe": string(plan.recipe.name + (" pure" if plan.options.pure else "")),
        "lltool.quantize.source": string(plan.file.path.name),
        "lltool.quantize.source_sha256": string(sha256_of(plan.file.paths)),
    }
