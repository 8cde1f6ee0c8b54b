"""Quantizes a GGUF file into one or several smaller ones at once: `open → retype by recipe → write`."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from lltool import __version__
from lltool.gguf import writer
from lltool.gguf.background import background_thread
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, string, u32
from lltool.gguf.optional import to_frame
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.gguf.resume import Resume, forget
from lltool.gguf.source import Model
from lltool.gguf.writer import Output, write_together
from lltool.quant.choose import DEFAULTS, Options
from lltool.quant.codec import BadWeights
from lltool.quant.guidance import Guidance
from lltool.quant.plan import BUFFER_BYTES, NOTHING_MORE, Plan, Request, plan_quantization, size_of, window_weights
from lltool.quant.recipe_language import Recipe, format_recipe
from lltool.quant.recipes import RECIPES
from lltool.quant.retype import Decoder, ErrorSum, retype_tensor

if TYPE_CHECKING:
    from pandas import DataFrame

QUANTIZATION_VERSION = 2  # the version of ggml's block formats

_SOURCE, _SOURCE_DIGEST = "lltool.quantize.source", "lltool.quantize.source_sha256"


@dataclass(frozen=True)
class Report:
    """A completed quantization; `path` is the file or its first shard, `paths` are all its files.

    `errors`, if requested, are the relative squared errors of the tensors whose type changed, by name.
    """

    paths: Sequence[Path]
    plan: Plan
    seconds: float  # for all the files that were written together
    errors: dict[str, float] | None = None

    @property
    def path(self) -> Path:
        return self.paths[0]

    def to_pandas(self) -> "DataFrame":
        """A row for each tensor: name, shape, types, bytes before and after, and the error if known. Needs pandas."""
        return to_frame(
            {
                "tensor": choice.tensor.name,
                "shape": choice.tensor.shape,
                "source_type": choice.tensor.type.name,
                "type": choice.type.name,
                "source_bytes": choice.tensor.nbytes,
                "bytes": size_of(choice),
                "error": (self.errors or {}).get(choice.tensor.name),
            }
            for choice in self.plan.choices
        )


def quantize_file(
    source: str | Path,
    target: str | Path | None,
    type: str | Recipe,
    options: Options = DEFAULTS,
    request: Request = NOTHING_MORE,
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Quantizes the GGUF file `source` to `target`, by default `NAME-TYPE.gguf` beside it.

    NAME is the source's name without its type. A file of that default name is replaced only if it was made from this
    source, or with `force`. Tensor bytes equal llama-quantize's. Raises InputError as `plan_quantization` and
    `write_plans` do.
    """
    with open_gguf(source) as file:
        plan = plan_quantization(file, type, options, request)
        return write_plans([plan], [target], threads=threads, force=force, progress=progress)[0]


def write_plans(
    plans: Sequence[Plan],
    targets: Sequence[str | Path | None],
    *,
    threads: int | None = None,
    buffer_bytes: int = BUFFER_BYTES,
    with_errors: bool = False,
    force: bool = False,
    shard_bytes: int | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Report]:
    """Carries out plans for one file, which is read and decoded once.

    A target is a file, None for the plan's default path, or a folder for the default name in it. A file with a default
    name is replaced only if it was made from this source, or with `force`. `shard_bytes` limits each shard, and plans
    that keep the source's shards take none. `resume` and `say` are as for `write_conversions`. Takes at most
    `estimate_memory` bytes.
    Raises InputError for weights that are not finite, for two plans with one target and for what `write_gguf` refuses.
    """
    started = time.monotonic()
    file = plans[0].file
    assert all(plan.file is file for plan in plans)
    decoder = Decoder(threads)
    named = [Path(target) if target and not Path(target).is_dir() else None for target in targets]
    paths = [
        name or Path(target or plan.file.path.parent) / plan.default_path().name
        for name, plan, target in zip(named, plans, targets, strict=True)
    ]
    if len(set(paths)) < len(paths):
        raise InputError(f"{paths[0]}: is the target of two types; name each type once")
    errors: list[dict[str, ErrorSum]] = [{} for _ in plans]
    is_over = Event()
    with background_thread() as thread:
        digest = thread.submit(sha256_of, file.paths, is_over)  # runs while the tensors are read, on the same pages

        def is_of_source(metadata: Mapping[str, Value]) -> bool:
            return is_made_of(metadata, file.path, digest.result)

        outputs = [
            Output(
                path,
                _retype(plan, decoder, found if with_errors else None),
                shard_bytes=shard_bytes,
                shard_sizes=plan.shard_sizes(),
                may_replace=None if name or force else is_of_source,
                has_room=True,
            )
            for plan, path, name, found in zip(plans, paths, named, errors, strict=True)
        ]
        try:
            files = write_together(
                outputs,
                window_weights=window_weights(buffer_bytes),
                progress=progress,
                inputs=file.paths,
                seal=lambda: {_SOURCE_DIGEST: string(digest.result())},
                check=file.check_unchanged,
                resume=Resume(_identity(file), say) if resume else None,
            )
        except BadWeights as error:
            file.check_unchanged()
            raise InputError(f"{file.path}: {error}") from error
        finally:
            is_over.set()
    if not resume:
        forget(files[0][0])
    seconds = time.monotonic() - started
    relative = [{name: sums.relative for name, sums in found.items()} for found in errors]
    return [
        Report(written, plan, seconds, found if with_errors else None)
        for written, plan, found in zip(files, plans, relative, strict=True)
    ]


def _identity(file: GGUFFile) -> str:
    """What the bytes of the tensors depend on besides the headers of the new files."""
    return json.dumps(
        [(str(path), status.st_size, status.st_mtime_ns) for path in file.paths for status in [path.stat()]]
    )


def is_made_of(metadata: Mapping[str, Value], source: Path, digest: Callable[[], str]) -> bool:
    """Whether a file's metadata state that it was quantized from `source` with the SHA-256 that `digest` returns."""
    return metadata.get(_SOURCE) == string(source.name) and metadata.get(_SOURCE_DIGEST) == string(digest())


def file_bytes(plan: Plan) -> int:
    """The size in bytes of the file that the plan makes, with its header."""
    return writer.file_bytes(_retype(plan, Decoder(), None), has_room=True)


def _retype(plan: Plan, decoder: Decoder, errors: dict[str, ErrorSum] | None) -> Model:
    """The model with the plan's types; when its tensors are read, their errors are added to `errors`."""
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
    """The source's metadata, with the new file type and keys that record how this file was made."""
    made = recipe_metadata(plan.recipe, plan.options, plan.request.guidance)
    made[_SOURCE] = string(plan.file.path.name)
    placeholder = string("0" * 64)  # until the digest is known
    return {**plan.model.metadata, **made, **plan.request.overrides, _SOURCE_DIGEST: placeholder}


def recipe_metadata(recipe: Recipe, options: Options, guidance: Guidance | None) -> dict[str, Value]:
    """The file type, and keys that record how a file was quantized."""
    made = {
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        "lltool.version": string(__version__),
        "lltool.quantize.recipe": string(recipe.name + (" pure" if options.pure else "")),
    }
    if recipe.file_type is not None:
        made["general.file_type"] = u32(recipe.file_type)
    if recipe != RECIPES.get(recipe.name):
        made["lltool.quantize.recipe_text"] = string(format_recipe(recipe))
    return made | (guidance.metadata() if guidance else {})
