"""Checkpoint to GGUF, quantized on the way if asked: `checkpoint source → retype → writer`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lltool.gguf.checkpoint import Checkpoint, open_checkpoint
from lltool.gguf.errors import InputError
from lltool.gguf.families.registry import find_family
from lltool.gguf.families.rope import read_rope, rope_divisors
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, string, u32
from lltool.gguf.source import Model, Tensor
from lltool.gguf.vocabulary import read_vocabulary
from lltool.gguf.writer import write_gguf
from lltool.quant.retype import retype

OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


@dataclass(frozen=True)
class Converted:
    """A GGUF model that is ready to be written; `notes` are what its maker should know."""

    name: str
    model: Model
    file_type: FileType
    notes: list[str] = field(default_factory=list)

    def default_path(self) -> Path:
        return Path(f"{self.name.rsplit('/')[-1]}-{self.file_type.name}.gguf")


def convert(
    source: str | Path,
    target: str | Path | None = None,
    outtype: str = "auto",
    *,
    pre: str | None = None,
    threads: int | None = None,
    shard_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Converts the checkpoint in a folder, or of an id on the Hub, and returns the path of the (first) file.

    `outtype` is one of OUTTYPES, `pre` a value for `tokenizer.ggml.pre` where the pre-tokenizer is not a known one.
    """
    converted = plan_conversion(source, outtype, pre=pre, threads=threads)
    path = Path(target) if target else converted.default_path()
    return write_gguf(path, converted.model, shard_bytes=shard_bytes, progress=progress)[0]


def plan_conversion(
    source: str | Path, outtype: str = "auto", *, pre: str | None = None, threads: int | None = None
) -> Converted:
    """Everything but the writing: reads configs and headers, no weights. Raises InputError as `convert` does."""
    if outtype not in OUTTYPES:
        raise InputError(f"outtype {outtype!r}, wanted {', '.join(OUTTYPES)}")
    checkpoint = open_checkpoint(source)
    metadata, tensors, notes = _read_model(checkpoint, pre)
    file_type = _file_type(tensors, outtype)
    metadata["general.file_type"] = u32(file_type)
    metadata["general.quantization_version"] = u32(2)
    model = retype(Model(metadata, tensors), lambda tensor: _choose(tensor, outtype), threads)
    return Converted(checkpoint.name, model, file_type, notes)


def _read_model(checkpoint: Checkpoint, pre: str | None) -> tuple[dict[str, Value], list[Tensor], list[str]]:
    """Metadata, tensors in their own types, and notes."""
    family, config = find_family(checkpoint.config, str(checkpoint.path / "config.json"))
    described = family.describe(config)
    tensors = family.to_gguf(list(checkpoint.files), checkpoint.tensor, config.values)
    rope = read_rope(config, ("default", "linear", "llama3", "yarn"))
    if rope["rope_type"] == "llama3":
        divisors = rope_divisors(rope, config.values["head_dim"])
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
        "lltool.version": string(version("lltool")),
        "lltool.source": string(checkpoint.name),
        **{f"{family.architecture}.{key}": value for key, value in described.items()},
        f"{family.architecture}.vocab_size": u32(embedding.rows),
        **vocabulary.metadata(),
    }
    return metadata, tensors, notes


def _constant(name: str, values: np.ndarray) -> Tensor:
    data = values.astype(np.float32).view(np.uint8).reshape(1, -1)
    return Tensor(name, GGMLType.F32, values.shape, lambda start, stop: data[start:stop])


def _choose(tensor: Tensor, outtype: str) -> GGMLType:
    """Vectors are F32; matrices keep their type with `auto`."""
    if len(tensor.shape) == 1:
        return GGMLType.F32
    return tensor.type if outtype == "auto" else GGMLType[outtype.upper()]


def _file_type(tensors: list[Tensor], outtype: str) -> FileType:
    first = next(tensor.type for tensor in tensors if len(tensor.shape) > 1)
    return FileType[first.name if outtype == "auto" else outtype.upper()]
