"""The front door to model files: `lltool.open`, `lltool.convert` and `lltool.quantize`."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from lltool.engine.check_conversion import check_conversion
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.mapped import LoadMode
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.quant.arrays import tensor_type
from lltool.quant.choose import Options
from lltool.quant.convert.conversion import Wishes, plan_conversion, write_conversion
from lltool.quant.guidance import read_guidance
from lltool.quant.plan import Request, plan_quantization
from lltool.quant.quantize import write_plans
from lltool.tools.api.inputs import Name, find, warn


def open(name: Name, *, mode: LoadMode = "mmap") -> GGUFFile:
    """Opens a GGUF file, a folder with one, or an id on the Hub: its `metadata` by key and its `tensors`, read lazily.

    Raises InputError if there is no such file, and if it is incomplete or invalid.

    >>> with lltool.open("SmolLM2-135M-Instruct-Q4_1.gguf") as file:
    ...     tensor = file.tensor("blk.0.attn_q.weight")
    ...     weights = lltool.dequantize_array(tensor.data(), tensor.type)
    >>> print(tensor.type.name, tensor.shape, weights.dtype)
    Q4_1 (576, 576) float32
    """
    return open_gguf(find(name), mode)


def convert(
    source: Name,
    target: str | PathLike[str] | None = None,
    type: str = "auto",
    *,
    imatrix: str | PathLike[str] | None = None,
    pure: bool = False,
    allow_nonfinite: bool = False,
    pre: str | None = None,
    strict: bool = False,
    threads: int | None = None,
    shard_bytes: int | None = None,
    force: bool = False,
) -> Path:
    """Makes a GGUF file of a checkpoint, a folder or an id on the Hub, and returns its path (or the first shard's).

    `type` is that of the matrices, such as "bf16" or "Q4_K_M" (default: the checkpoint's own). The default target is
    `NAME-TYPE.gguf` in the working folder; a file of that name is replaced only if it was made of the same weights, or
    with `force`. `pre` is tokenizer.ggml.pre, if the pre-tokenizer is not recognized. A shape that does not allow the
    type gets another one, with a warning, or with `strict` is an error. `imatrix` and `pure` are as for `quantize`.
    Plain types keep NaN and infinity only with `allow_nonfinite`. Raises InputError for a checkpoint that is damaged or
    of an unsupported kind, or whose tokenizer would change, before anything is written.

    >>> lltool.convert("checkpoint", "model.gguf", "bf16")
    PosixPath('model.gguf')
    """
    guidance = read_guidance(str(imatrix)) if imatrix else None
    wishes = Wishes(pre, strict, Options(pure), guidance, allow_nonfinite)
    conversion = plan_conversion(str(source), type, wishes, threads=threads)
    check_conversion(conversion)
    for note in conversion.notes:
        warn(note)
    return write_conversion(conversion, _path(target), shard_bytes=shard_bytes, force=force)[0]


def quantize(
    name: Name,
    type: str,
    target: str | PathLike[str] | None = None,
    *,
    imatrix: str | PathLike[str] | None = None,
    pure: bool = False,
    tensor_types: Mapping[str, str] | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    prune_layers: Sequence[int] = (),
    keep_split: bool = False,
    allow_requantize: bool = False,
    strict: bool = False,
    threads: int | None = None,
    force: bool = False,
) -> Path:
    """Makes a model file smaller, with the bytes that llama-quantize writes, and returns the path of the new file.

    `type` is a name such as "Q4_K_M", or the file of a recipe. The default target is `NAME-TYPE.gguf` beside the
    source, or in the working folder for a model of the Hub; a file of that name is replaced only if it was made of the
    same source, or with `force`. `imatrix` is a file that says which columns matter; `tensor_types` maps expressions
    to the types of the tensors whose names match. A shape that does not allow a type gets another one, with a warning,
    or with `strict` is an error. Raises InputError for what cannot be quantized, before anything is written.

    >>> lltool.quantize("SmolLM2-135M-Instruct-Q4_1.gguf", "Q8_0", "small.gguf", allow_requantize=True)
    PosixPath('small.gguf')
    """
    options = Options(
        pure,
        leave_output_tensor,
        _optional_type(output_tensor_type),
        _optional_type(token_embedding_type),
        tuple((pattern.lower(), tensor_type(wanted)) for pattern, wanted in (tensor_types or {}).items()),
    )
    guidance = read_guidance(str(imatrix)) if imatrix else None
    request = Request(guidance, tuple(prune_layers), {}, keep_split, allow_requantize, strict)
    source = find(name)
    if target is None and not Path(name).exists():
        target = Path()  # the default name, here and not in the Hub's cache
    with open_gguf(source) as file:
        plan = plan_quantization(file, type, options, request)
        for note in plan.notes:
            warn(note)
        return write_plans([plan], [_path(target)], threads=threads, force=force)[0].path


def _path(name: str | PathLike[str] | None) -> Path | None:
    return None if name is None else Path(name)


def _optional_type(name: str | None) -> GGMLType | None:
    return None if name is None else tensor_type(name)
