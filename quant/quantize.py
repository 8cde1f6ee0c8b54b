"""GGUF to smaller GGUF, one or several at once: `open → retype by recipe → write`."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from lltool import __version__
from lltool.gguf import writer
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model
from lltool.gguf.writer import Output, write_together
from lltool.quant.choose import DEFAULTS, Options
from lltool.quant.codec import BadWeights
from lltool.quant.plan import BUFFER_BYTES, NOTHING_MORE, Plan, Request, plan_quantization, window_weights
from lltool.quant.recipe_language import Recipe, format_recipe
from lltool.quant.recipes import RECIPES
from lltool.quant.retype import Decoder, ErrorSum, retype_tensor

QUANTIZATION_VERSION = 2  # of ggml's block formats

_SOURCE_DIGEST = "lltool.quantize.source_sha256"


@dataclass(frozen=True)
class Report:
    """A quantization that was done; `path` is the first of several shards.

    `errors`, if asked for, are those of the tensors in new types, by name: relative, of squares.
    """

    path: Path
    plan: Plan
    seconds: float  # of all that were written together
    errors: dict[str, float] | None = None


def quantize_file(
    source: str | Path,
    target: str | Path | None,
    type: str | Recipe,
    options: Options = DEFAULTS,
    request: Request = NOTHING_MORE,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Quantizes the GGUF file `source` to `target`, by default `ggml-model-TYPE.gguf` beside it.

    Tensor bytes are those of llama-quantize. Raises InputError as `plan_quantization` and `write_plans` do.
    """
    with open_gguf(source) as file:
        plan = plan_quantization(file, type, options, request)
        return write_plans([plan], [target], threads=threads, progress=progress)[0]


def write_plans(
    plans: Sequence[Plan],
    targets: Sequence[str | Path | None],
    *,
    threads: int | None = None,
    buffer_bytes: int = BUFFER_BYTES,
    with_errors: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Report]:
    """Carries out plans for one file, which is read and decoded once.

    Takes at most the memory that `estimate_memory` says. Raises InputError for weights that are not finite and for what
    `write_gguf` refuses.
    """
    started = time.monotonic()
    file = plans[0].file
    assert all(plan.file is file for plan in plans)
    decoder = Decoder(threads)
    paths = [Path(target) if target else plan.default_path() for plan, target in zip(plans, targets, strict=True)]
    if len(set(paths)) < len(paths):
        raise InputError(f"{paths[0]}: is the target of two types; name each type once")
    errors: list[dict[str, ErrorSum]] = [{} for _ in plans]
    outputs = [
        Output(path, _retype(plan, decoder, found if with_errors else None), shard_sizes=plan.shard_sizes())
        for plan, path, found in zip(plans, paths, errors, strict=True)
    ]
    is_over = Event()
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, file.paths, is_over)  # while the tensors are read, from the same pages
        try:
            files = write_together(
                outputs,
                window_weights=window_weights(buffer_bytes),
                progress=progress,
                inputs=file.paths,
                seal=lambda: {_SOURCE_DIGEST: string(digest.result())},
            )
        except BadWeights as error:
            raise InputError(f"{file.path}: {error}") from error
        finally:
            is_over.set()
    seconds = time.monotonic() - started
    relative = [{name: sums.relative for name, sums in found.items()} for found in errors]
    return [
        Report(written[0], plan, seconds, found if with_errors else None)
        for written, plan, found in zip(files, plans, relative, strict=True)
    ]


def file_bytes(plan: Plan) -> int:
    """The size of the file that the plan makes, header included."""
    return writer.file_bytes(_retype(plan, Decoder(), None))


def _retype(plan: Plan, decoder: Decoder, errors: dict[str, ErrorSum] | None) -> Model:
    """The model as the plan says; what is lost goes to `errors` when it is read."""
    guidance = plan.request.guidance
    tensors = []
    for choice in plan.choices:
        tensor = choice.tensor
        if errors is not None and choice.type != tensor.type:
            errors[tensor.name] = ErrorSum()
        tensors.append(
            retype_tensor(
                tensor,
                choice.type,
                importance=guidance.of(tensor, plan.names[tensor.name]) if guidance else None,
                decoder=decoder,
                error=errors.get(tensor.name) if errors is not None else None,
            )
        )
    return Model(_metadata(plan), tensors)


def _metadata(plan: Plan) -> dict[str, Value]:
    """The source's, with the new file type and how this file was made."""
    made = {
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        "lltool.version": string(__version__),
        "lltool.quantize.recipe": string(plan.recipe.name + (" pure" if plan.options.pure else "")),
        "lltool.quantize.source": string(plan.file.path.name),
    }
    if plan.recipe.file_type is not None:
        made["general.file_type"] = u32(plan.recipe.file_type)
    if plan.recipe != RECIPES.get(plan.recipe.name):
        made["lltool.quantize.recipe_text"] = string(format_recipe(plan.recipe))
    if plan.request.guidance:
        made |= plan.request.guidance.metadata()
    placeholder = string("0" * 64)  # until it is known
    return {**plan.model.metadata, **made, **plan.request.overrides, _SOURCE_DIGEST: placeholder}
