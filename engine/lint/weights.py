"""Checks of the tensors: their values, and their types against what the file says."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lltool.engine.lint.finding import Finding
from lltool.gguf.errors import InputError
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.metadata import Value
from lltool.gguf.reader import GGUFFile
from lltool.gguf.source import Tensor
from lltool.quant.codec import decode
from lltool.quant.recipes import SUBSTITUTES

_WINDOW_WEIGHTS = 4 << 20  # weights that are decoded at a time
_HUGE = 1e5  # more than half precision holds; weights of trained models are below 1000
_FILE_TYPE = "general.file_type"

# The main types of recipes whose names do not say it.
_MAIN = {"MXFP4_MOE": "MXFP4", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S", "IQ2_M": "IQ2_S", "Q2_K_S": "Q2_K"}


def check_values(file: GGUFFile, progress: Callable[[int, int], None] | None = None) -> Iterator[Finding]:
    """Decodes all tensors and looks for weights that are not finite, huge, or all zero.

    A scale that is NaN or infinite shows in the weights of its block. `progress` gets the bytes read and their total.
    """
    total, done = sum(tensor.nbytes for tensor in file.tensors), 0
    for tensor in file.tensors:
        yield from _check_tensor(tensor)
        done += tensor.nbytes
        if progress:
            progress(done, total)


def _check_tensor(tensor: Tensor) -> Iterator[Finding]:
    bad, first, largest = 0, 0, 0.0
    step = max(1, _WINDOW_WEIGHTS // tensor.columns)
    for start in range(0, tensor.rows, step):
        weights = decode(tensor.read(start, min(start + step, tensor.rows)), tensor.type)
        finite = np.isfinite(weights)
        if not finite.all():
            if not bad:
                first = start + int(np.flatnonzero(~finite.all(axis=1))[0])
            bad += int(np.count_nonzero(~finite))
            weights = np.where(finite, weights, 0)
        largest = max(largest, float(np.max(np.abs(weights))))
    if bad:
        block = f" ({tensor.type.name}: a block's scale is)" if LAYOUT[tensor.type].block > 1 else ""
        found = f"tensor {tensor.name} has {bad} weights that are NaN or infinite{block}, the first in row {first}"
        yield Finding("error", "values", found, "answers become NaN or nonsense; get or convert the file again")
    elif largest == 0 and len(tensor.shape) > 1:
        found = f"tensor {tensor.name} is all zeros"
        yield Finding("warning", "values", found, "its layer has no effect; the file may have been cut off and padded")
    if largest > _HUGE:
        found = f"tensor {tensor.name} has a weight of {largest:.3g}"
        yield Finding("warning", "values", found, "trained weights are not so large: a scale may be damaged")


def check_file_type(metadata: Mapping[str, Value], tensors: Iterator[Tensor]) -> Iterator[Finding]:
    """Compares `general.file_type` with the types of the matrices."""
    weights = Counter[GGMLType]()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            weights[tensor.type] += tensor.rows * tensor.columns
    stated = metadata.get(_FILE_TYPE)
    if stated is None or not weights:
        return
    why = "programs show the wrong type, and choose files by it"
    most = weights.most_common(1)[0][0]
    cure = tuple(f"{_FILE_TYPE}=uint32:{type.value}" for type in _recipes_of(most)[:1])
    try:
        name = FileType(stated.data).name
    except (ValueError, TypeError):
        found = f"{_FILE_TYPE} is {stated.data}, which is no known type; most weights are {most.name}"
        yield Finding("warning", "file type", found, why, cure)
        return
    main = _main_type(name)
    if not {main, SUBSTITUTES.get(main, main)} & weights.keys():
        found = f"{_FILE_TYPE} says {name}, but no matrix is {main.name}; most weights are {most.name}"
        yield Finding("warning", "file type", found, why, cure)


def _main_type(recipe: str) -> GGMLType:
    name = _MAIN.get(recipe, recipe)
    return GGMLType[name if name in GGMLType.__members__ else name.rpartition("_")[0]]


def _recipes_of(type: GGMLType) -> list[FileType]:
    """The recipes with this main type: that of the same name first, then the medium one."""
    found = [recipe for recipe in FileType if _main_type(recipe.name) == type]
    return sorted(found, key=lambda recipe: (recipe.name != type.name, not recipe.name.endswith("_M")))


def check_runs(file: GGUFFile) -> Iterator[Finding]:
    """Looks for missing, unused and misshapen tensors, and for keys that the architecture does not allow."""
    from lltool.engine.models.architectures import check_runnable
    from lltool.engine.traits import ARCHITECTURES

    if not file.tensors:
        found = "the file has no tensors, perhaps only a vocabulary"
        yield Finding("note", "architecture", found, "there is no model to run")
        return
    stated = file.metadata.get("general.architecture")
    if stated is not None and stated.data not in ARCHITECTURES:
        found = f"the architecture {stated.data!r} is not known, so keys and tensors were not compared with it"
        yield Finding("note", "architecture", found, "this version does not run the model; other programs may")
        return
    try:
        check_runnable(file)
    except InputError as error:
        yield Finding("error", "architecture", str(error), "the model cannot be run")
