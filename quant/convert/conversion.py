"""Converts a checkpoint to GGUF and optionally quantizes it: `checkpoint source → retype → writer`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lltool import __version__
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType, array, string, u32
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import Output, write_together
from lltool.quant.choose import PLAIN, check_choices, choose_types, describe_fallbacks
from lltool.quant.codec import BadWeights
from lltool.quant.convert.checkpoint import Checkpoint, open_checkpoint, read_json
from lltool.quant.convert.families.family import constant
from lltool.quant.convert.families.registry import find_family
from lltool.quant.convert.sampling_keys import sampling_metadata
from lltool.quant.convert.vocabulary import read_vocabulary
from lltool.quant.convert.yes_no_reranker import is_reranker, make_classifier
from lltool.quant.quantize import QUANTIZATION_VERSION
from lltool.quant.recipes import RECIPES, find_recipe
from lltool.quant.retype import retype, retype_tensor

_SOURCE_DIGEST = "lltool.convert.source_sha256"

# Packed weights are rounded at once to these; for the other types they are float32 until they are encoded.
_PLAIN = {"f32": GGMLType.F32, "f16": GGMLType.F16, "bf16": GGMLType.BF16}

OUTTYPES = ("auto", *(name.lower() for name, recipe in RECIPES.items() if recipe.file_type is not None))


@dataclass(frozen=True)
class Conversion:
    """A planned conversion of a checkpoint, made before any weight is read; `notes` are for the user."""

    checkpoint: Checkpoint
    model: Model
    file_type: FileType
    notes: Sequence[str]

    @property
    def bytes(self) -> int:
        """The bytes of tensor data in the new file."""
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
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Converts a checkpoint, given as a folder or an id on the Hub, and returns the path of the file or first shard.

    `outtype` is one of OUTTYPES; `pre` is the value of `tokenizer.ggml.pre` for an unknown pre-tokenizer. The default
    target is `NAME-TYPE.gguf` in the working folder; a file of that name is replaced only if it was made from these
    weights, or with `force`. Raises InputError as `plan_conversion` and `write_conversion` do.
    """
    conversion = plan_conversion(source, outtype, pre=pre, strict=strict, threads=threads)
    return write_conversion(conversion, target, shard_bytes=shard_bytes, force=force, progress=progress)[0]


def plan_conversion(
    source: str | Path,
    outtype: str = "auto",
    *,
    pre: str | None = None,
    strict: bool = False,
    threads: int | None = None,
) -> Conversion:
    """Plans a conversion without writing. With `auto`, matrices keep their types; vectors are always F32.

    Raises InputError for a checkpoint that is damaged or of an unsupported kind and, with `strict`, if a shape does
    not allow the requested type.
    """
    if outtype not in OUTTYPES:
        raise InputError(f"outtype {outtype!r} is not one of {', '.join(OUTTYPES)}")
    checkpoint = open_checkpoint(source, None if outtype == "auto" else _PLAIN.get(outtype, GGMLType.F32))
    metadata, tensors, notes = _read_model(checkpoint, pre)
    types = {tensor.name: tensor.type for tensor in tensors}
    file_type = _file_type(tensors)
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
    kept = Counter(t.type.name for t in tensors if t.type not in PLAIN and types[t.name] == t.type)
    notes += [
        f"{count} tensors stay in {name}, the grid of the checkpoint: their values are exact, not rounded again"
        for name, count in kept.items()
    ]
    metadata["general.file_type"] = u32(file_type)
    metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    plain = {tensor.name for tensor in tensors if _is_float32(tensor)}
    model = retype(
        Model(metadata, tensors), lambda tensor: GGMLType.F32 if tensor.name in plain else types[tensor.name], threads
    )
    return Conversion(checkpoint, model, file_type, notes)


def write_conversion(
    conversion: Conversion,
    target: str | Path | None = None,
    *,
    shard_bytes: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Writes a planned conversion and returns the files. Raises InputError for weights that the type cannot hold.

    An existing file of the default name is replaced under the conditions of `convert`.
    """
    path = Path(target) if target else conversion.default_path()
    made = {
        "lltool.version": string(__version__),
        "lltool.convert.source": string(conversion.checkpoint.name),
        _SOURCE_DIGEST: string(sha256_of(conversion.checkpoint.weights)),
    }
    if conversion.checkpoint.revision:
        made["lltool.convert.source_revision"] = string(conversion.checkpoint.revision)
    model = Model({**conversion.model.metadata, **made}, conversion.model.tensors)
    checkpoint = conversion.checkpoint
    try:
        return write_together(
            [
                Output(
                    path,
                    model,
                    shard_bytes=shard_bytes,
                    may_replace=None
                    if target or force
                    else lambda found: found.get(_SOURCE_DIGEST) == made[_SOURCE_DIGEST],
                    has_room=True,
                )
            ],
            progress=progress,
            inputs=checkpoint.inputs,
            check=checkpoint.check_unchanged,
        )[0]
    except BadWeights as error:
        checkpoint.check_unchanged()
        raise InputError(f"{conversion.checkpoint.path}: {error}; take another --outtype") from None


def _read_model(checkpoint: Checkpoint, pre: str | None) -> tuple[dict[str, Value], list[Tensor], list[str]]:
    """The metadata, the tensors in their original types (float64 as float32), and notes."""
    family, config = find_family(checkpoint.config, str(checkpoint.path / "config.json"))
    names = family.match(checkpoint.files, config)
    described = family.describe(config)
    tensors = family.to_gguf(names, checkpoint.files, config)
    tensors += [constant(name, values, values.shape) for name, values in config.constants.items()]
    tensors += config.added
    doubles = [tensor for tensor in tensors if tensor.type == GGMLType.F64]
    tensors = [retype_tensor(tensor, GGMLType.F32) if tensor in doubles else tensor for tensor in tensors]
    embedding = tensors[0]
    vocabulary = read_vocabulary(checkpoint.path, config.values, embedding.rows, pre)
    notes = [*checkpoint.notes, *config.notes, *vocabulary.notes]
    if is_reranker(checkpoint.path, checkpoint.name, family.architecture):
        classifier = make_classifier(tensors, vocabulary.tokens, checkpoint.path)
        tensors, config.whole_keys = classifier.tensors, config.whole_keys | classifier.keys
    if doubles:
        notes.append(f"{len(doubles)} tensors are stored in float64; they are rounded to float32")
    if unknown := config.unknown():
        notes.append(f"config.json has unknown keys, which are assumed not to matter: {', '.join(unknown)}")
    if skipped := sum(any(part in name for part in family.ignored) for name in checkpoint.files):
        notes.append(f"{skipped} tensors are not weights of the text model and are left out")
    generation = checkpoint.path / "generation_config.json"
    metadata = {
        "general.architecture": string(family.architecture),
        "general.type": string("model"),
        "general.name": string(checkpoint.name.rsplit("/")[-1]),
        **{f"{family.architecture}.{key}": value for key, value in described.items()},
        f"{family.architecture}.vocab_size": u32(embedding.rows),
        **{key: array(ValueType.FLOAT32, np.array(x, np.float32)) for key, x in config.layer_values.items()},
        **vocabulary.metadata(),
        **config.whole_keys,
        **sampling_metadata(read_json(generation, missing={}), str(generation)),
    }
    return metadata, tensors, notes


def _is_float32(tensor: Tensor) -> bool:
    """Whether files have the tensor in float32, as llama.cpp reads it.

    These are vectors, biases of experts, routers, and embeddings of positions and of types of tokens.
    """
    is_added = tensor.name in ("position_embd.weight", "token_types.weight")
    is_plain = len(tensor.shape) == 1 or not tensor.name.endswith("weight")
    return is_plain or is_added or ".ffn_gate_inp." in tensor.name


def _file_type(tensors: Sequence[Tensor]) -> FileType:
    """The number for files whose matrices have, for the most part, the type of these."""
    weights = Counter[GGMLType]()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            weights[tensor.type] += tensor.rows * tensor.columns
    common = weights.most_common(1)[0][0]
    return FileType.MXFP4_MOE if common == GGMLType.MXFP4 else FileType[common.name]
