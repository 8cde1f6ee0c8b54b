"""A checkpoint as a GGUF model: its tensors by the table of its family, its config and vocabulary as metadata."""

import numpy as np

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import ValueType, array, string, u32
from lltool.gguf.source import Model
from lltool.quant.convert.checkpoint import Checkpoint, read_json
from lltool.quant.convert.families.family import constant
from lltool.quant.convert.families.registry import find_family
from lltool.quant.convert.sampling_keys import sampling_metadata
from lltool.quant.convert.vocabulary import read_vocabulary
from lltool.quant.convert.yes_no_reranker import is_reranker, make_classifier
from lltool.quant.retype import retype_tensor


def read_model(
    checkpoint: Checkpoint, pre: str | None = None, *, allow_nonfinite: bool = False
) -> tuple[Model, list[str]]:
    """The metadata and the tensors in their original types (float64 as float32), and notes for the user.

    `pre` is the value of `tokenizer.ggml.pre` for an unknown pre-tokenizer. Raises InputError for a checkpoint that is
    damaged or of an unsupported kind.
    """
    family, config = find_family(checkpoint.config, str(checkpoint.path / "config.json"))
    names = family.match(checkpoint.files, config)
    described = family.describe(config)
    tensors = family.to_gguf(names, checkpoint.files, config)
    tensors += [constant(name, values, values.shape) for name, values in config.constants.items()]
    tensors += config.added
    doubles = [tensor for tensor in tensors if tensor.type == GGMLType.F64]
    tensors = [
        retype_tensor(tensor, GGMLType.F32, allow_nonfinite=allow_nonfinite) if tensor in doubles else tensor
        for tensor in tensors
    ]
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
    return Model(metadata, tensors), notes
