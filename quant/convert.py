"""Checkpoint to GGUF, quantized on the way if asked: `checkpoint source → retype → writer`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool import __version__
from lltool.gguf.checkpoint import Checkpoint, open_checkpoint
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.families.registry import find_family
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, string, u32
from lltool.gguf.source import Model, Tensor
from lltool.gguf.vocabulary import read_vocabulary
from lltool.gguf.writer import write_gguf
from lltool.quant.choose import check_choices, choose_types, describe_fallbacks
from lltool.quant.codec import BadWeights
from lltool.quant.quantize import QUANTIZATION_VERSION
from lltool.quant.recipes import RECIPES, find_recipe
from lltool.quant.retype import retype

OUTTYPES = ("auto", *(name.lower() for name, recipe in RECIPES.items() if recipe.file_type is not None))


@dataclass(frozen=True)
class Conversion:
    """What converting a checkpoint will do; `notes` are what the user should know. No weight has been read."""

    checkpoint: Checkpoint
    model: Model
    file_type: FileType
    notes: Sequence[str]

    @property
    def bytes(self) -> int:
        """Of tensor data."""
        return sum(tensor.nbytes for tensor in self.model.tensors)

    def default_path(self) -> Path:
        return Path(f"{self.checkpoint.name.rsplit('/')[-1]}-{self.file_type.name}.gguf")


def convert(
    source: str | Path,
    target: str | Path | None = None,
    outtype: str = "auto",
    *,
    pre: str | None = None,
    strict: bool = False,
    threads: int | None = None,
    shard_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Converts the checkpoint in a folder, or of an id on the Hub, and returns the path of the (first) file.

    `outtype` is one of OUTTYPES, `pre` a value for `tokenizer.ggml.pre` where the pre-tokenizer is not a known one.
    """
    conversion = plan_conversion(source, outtype, pre=pre, strict=strict, threads=threads)
    return write_conversion(conversion, target, shard_bytes=shard_bytes, progress=progress)[0]


def plan_conversion(
    source: str | Path,
    outtype: str = "auto",
    *,
    pre: str | None = None,
    strict: bool = False,
    threads: int | None = None,
) -> Conversion:
    """Everything but the writing. With `auto` the matrices keep the types they have; vectors are always F32.

    Raises InputError for a checkpoint that is damaged or of an unsupported kind, and with `strict` where a shape does
    not allow the type that is asked for.
    """
    if outtype not in OUTTYPES:
        raise InputError(f"outtype {outtype!r} is not one of {', '.join(OUTTYPES)}")
    checkpoint = open_checkpoint(source)
    metadata, tensors, notes = _read_model(checkpoint, pre)
    types = {tensor.name: tensor.type for tensor in tensors}
    file_type = FileType[next(tensor.type for tensor in tensors if len(tensor.shape) > 1).name]
    if outtype != "auto":
        recipe = find_recipe(outtype)
        file_type = recipe.file_type or file_type
        choices = choose_types(Model(metadata, tensors), recipe)
        check_choices(choices, str(checkpoint.path))
        types = {choice.tensor.name: choice.type for choice in choices}
        if fallbacks := describe_fallbacks(choices):
            if strict:
                raise InputError(f"{checkpoint.path}: {'; '.join(fallbacks)}; drop --strict to accept that")
            notes += fallbacks
    metadata["general.file_type"] = u32(file_type)
    metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    vectors = {tensor.name for tensor in tensors if len(tensor.shape) == 1}
    model = retype(
        Model(metadata, tensors), lambda tensor: GGMLType.F32 if tensor.name in vectors else types[tensor.name], threads
    )
    return Conversion(checkpoint, model, file_type, notes)


def write_conversion(
    conversion: Conversion,
    target: str | Path | None = None,
    *,
    shard_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Carries out a plan; returns the files. Raises InputError for weights that the type cannot hold."""
    path = Path(target) if target else conversion.default_path()
    weights = sorted({file.path for file in conversion.checkpoint.files.values()})
    made = {
        "lltool.version": string(__version__),
        "lltool.convert.source": string(conversion.checkpoint.name),
        "lltool.convert.source_sha256": string(sha256_of(weights)),
    }
    if conversion.checkpoint.revision:
        made["lltool.convert.source_revision"] = string(conversion.checkpoint.revision)
    model = Model({**conversion.model.metadata, **made}, conversion.model.tensors)
    try:
        return write_gguf(path, model, shard_bytes=shard_bytes, progress=progress, inputs=conversion.checkpoint.inputs)
    except BadWeights as error:
        raise InputError(f"{conversion.checkpoint.path}: {error}; take another --outtype") from None


def _read_model(checkpoint: Checkpoint, pre: str | None) -> tuple[dict[str, Value], list[Tensor], list[str]]:
    """Metadata, tensors in their own types, and notes."""
    family, config = find_family(checkpoint.config, str(checkpoint.path / "config.json"))
    described = family.describe(config)
    tensors = family.to_gguf(list(checkpoint.files), checkpoint.tensor, config.values)
    if (divisors := family.rope_divisors(config)) is not None:
        tensors.append(_constant("rope_freqs.weight", divisors))
    embedding = tensors[0]
    vocabulary = read_vocabulary(checkpoint.path, config.values, embedding.rows, pre)
    notes = list(vocabulary.notes)
    if unknown := config.unknown():
        notes.append(f"config.json has keys that are not known, taken not to matter: {', '.join(unknown)}")
    if skipped := sum(any(part in name for part in family.ignored) for name in checkpoint.files):
        notes.append(f"{skipped} tensors are not of the text model and left out")
    metadata = {
        "general.architecture": string(family.architecture),
        "general.type": string("model"),
        "general.name": string(checkpoint.name.rsplit("/")[-1]),
        **{f"{family.architecture}.{key}": value for key, value in described.items()},
        f"{family.architecture}.vocab_size": u32(embedding.rows),
        **vocabulary.metadata(),
    }
    return metadata, tensors, notes


def _constant(name: str, values: NDArray[np.float32]) -> Tensor:
    data = values.view(np.uint8).reshape(1, -1)
    return Tensor(name, GGMLType.F32, values.shape, lambda start, stop: data[start:stop])
