"""Converts a checkpoint to GGUF and optionally quantizes it: `checkpoint source → retype → writer`.

Several outputs are written in one pass: the rows of a tensor are read and decoded once, then encoded for each output.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

from lltool import __version__
from lltool.gguf import writer
from lltool.gguf.background import background_thread
from lltool.gguf.errors import InputError
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType, array, string, u32
from lltool.gguf.resume import Resume, forget
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import Output, write_together
from lltool.quant import plan
from lltool.quant.choose import (
    DEFAULTS,
    PLAIN,
    ChosenType,
    NeedsImportance,
    Options,
    check_choices,
    check_patterns,
    choose_types,
    describe_fallbacks,
)
from lltool.quant.codec import BadWeights
from lltool.quant.convert.checkpoint import Checkpoint, open_checkpoint
from lltool.quant.convert.lora import Adapter, merge_adapters
from lltool.quant.convert.model import read_model
from lltool.quant.guidance import Guidance
from lltool.quant.plan import BUFFER_BYTES, window_weights
from lltool.quant.quantize import QUANTIZATION_VERSION, recipe_metadata
from lltool.quant.recipe_language import Recipe
from lltool.quant.recipes import find_recipe
from lltool.quant.retype import Decoder, refuse_nonfinite, retype_tensor

_SOURCE_DIGEST, _ADAPTERS = "lltool.convert.source_sha256", "lltool.convert.adapters"

# Packed weights are rounded at once to these; for the other types they are float32 until they are encoded.
_PLAIN = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}

_VOCABULARY_BYTES = 512 << 20  # the vocabulary and the comparison of its tokenizer

# What `--target` chooses from, best first: the usual types of each size. Those from IQ3_XXS on need importance.
TARGET_TYPES = (
    *("auto", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s"),
    *("iq3_xxs", "q2_k", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"),
)


@dataclass(frozen=True)
class Wishes:
    """The user's wishes for a conversion besides the types' names.

    `pre` is the value of `tokenizer.ggml.pre` for an unknown pre-tokenizer. With `strict`, a shape that does not allow
    the type is an error; with `allow_nonfinite`, plain types keep NaN and infinity; with `remote`, the weights of a
    checkpoint on the Hub are not downloaded but read in ranges. `adapters` are merged on the way.
    """

    pre: str | None = None
    strict: bool = False
    options: Options = DEFAULTS
    guidance: Guidance | None = None
    allow_nonfinite: bool = False
    remote: bool = False
    adapters: Sequence[Adapter] = ()


NO_WISHES = Wishes()


@dataclass(frozen=True)
class Conversion:
    """A planned conversion of a checkpoint, made before any weight is read; `notes` are for the user.

    `recipe` is None if the matrices keep their types. `choices` are of the checkpoint's tensors, in the order of
    `model`, which has them in their new types.
    """

    checkpoint: Checkpoint
    model: Model
    file_type: FileType
    notes: Sequence[str]
    recipe: Recipe | None = None
    choices: Sequence[ChosenType] = ()
    is_guided: bool = False
    allows_nonfinite: bool = False

    @property
    def type_name(self) -> str:
        return self.recipe.name if self.recipe else self.file_type.name

    @property
    def bytes(self) -> int:
        """The bytes of tensor data in the new file."""
        return sum(tensor.nbytes for tensor in self.model.tensors)

    @property
    def file_bytes(self) -> int:
        """The bytes of the new file, if it is not split."""
        return writer.file_bytes(_with_origin(self), has_room=True)

    def default_path(self) -> Path:
        return Path(f"{self.checkpoint.name.rsplit('/')[-1]}-{self.type_name}.gguf")


@dataclass
class _Opened:
    """The model as the checkpoint has it, read once for all outputs that unpack its weights to the same type."""

    checkpoint: Checkpoint
    model: Model
    notes: list[str]
    decoder: Decoder = field(default_factory=Decoder)


def convert(
    source: str | Path,
    target: str | Path | None = None,
    outtype: str = "auto",
    wishes: Wishes = NO_WISHES,
    *,
    threads: int | None = None,
    shard_bytes: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Converts a checkpoint, given as a folder or an id on the Hub, and returns the path of the file or first shard.

    `outtype` is "auto", a recipe's name in any case or the file of one. The default target is `NAME-TYPE.gguf` in the
    working folder; a file of that name is replaced only if it was made from these weights, or with `force`. Raises
    InputError as `plan_conversions` and `write_conversions` do.
    """
    conversion = plan_conversion(source, outtype, wishes, threads=threads)
    return write_conversion(conversion, target, shard_bytes=shard_bytes, force=force, progress=progress)[0]


def plan_conversion(
    source: str | Path, outtype: str = "auto", wishes: Wishes = NO_WISHES, *, threads: int | None = None
) -> Conversion:
    """`plan_conversions` of one type."""
    return plan_conversions(source, [outtype], wishes, threads=threads)[0]


def plan_conversions(
    source: str | Path, outtypes: Sequence[str], wishes: Wishes = NO_WISHES, *, threads: int | None = None
) -> list[Conversion]:
    """Plans conversions to several types without writing. With "auto", matrices keep their types.

    Vectors are always F32. Raises InputError for a checkpoint that is damaged or of an unsupported kind, for unknown
    types, for types that need importance if none is given, for importance of another model and, if the wishes are
    strict, if a shape does not allow the requested type.
    """
    opened: dict[GGMLType | None, _Opened] = {}
    return [_plan(_open(source, outtype, wishes, opened, threads), outtype, wishes) for outtype in outtypes]


def plan_to_size(
    source: str | Path, size: int, wishes: Wishes = NO_WISHES, *, threads: int | None = None
) -> Conversion:
    """Plans the conversion to the first of TARGET_TYPES whose file has at most `size` bytes.

    Raises InputError if there is none, and as `plan_conversions` does.
    """
    opened: dict[GGMLType | None, _Opened] = {}
    least = None
    for outtype in TARGET_TYPES:
        try:
            conversion = _plan(_open(source, outtype, wishes, opened, threads), outtype, wishes)
        except NeedsImportance:
            continue
        if conversion.file_bytes <= size:
            return conversion
        least = min(least or conversion, conversion, key=lambda planned: planned.file_bytes)
    assert least
    hint = "" if wishes.guidance else ", or give --imatrix, which allows smaller types"
    raise InputError(
        f"{least.checkpoint.path}: no type fits {size:,} bytes; the smallest, {least.type_name}, takes "
        f"{least.file_bytes:,}: ask for more{hint}"
    )


def _open(
    source: str | Path,
    outtype: str,
    wishes: Wishes,
    opened: dict[GGMLType | None, _Opened],
    threads: int | None,
) -> _Opened:
    """The opened checkpoint for this type, from `opened` or new in it."""
    unpacked = None if outtype == "auto" else _PLAIN.get(find_recipe(outtype).name, GGMLType.F32)
    known = opened.get(unpacked)
    if known is None:
        known = next((other for other in opened.values() if not other.checkpoint.is_packed), None)
    if known is None:
        checkpoint = open_checkpoint(source, unpacked, remote=wishes.remote)
        if wishes.adapters:
            files, merged = merge_adapters(checkpoint.files, wishes.adapters, unpacked)
            checkpoint = replace(checkpoint, files=files, notes=[*checkpoint.notes, *merged])
        model, notes = read_model(checkpoint, wishes.pre, allow_nonfinite=wishes.allow_nonfinite)
        known = _Opened(checkpoint, model, notes, Decoder(threads))
    opened[unpacked] = known
    return known


def _plan(opened: _Opened, outtype: str, wishes: Wishes) -> Conversion:
    checkpoint, tensors, options, guidance = opened.checkpoint, opened.model.tensors, wishes.options, wishes.guidance
    notes, metadata = list(opened.notes), dict(opened.model.metadata)
    check_patterns(opened.model, options)
    recipe = None if outtype == "auto" else find_recipe(outtype)
    file_type = _file_type(tensors)
    choices = [ChosenType(tensor, tensor.type, tensor.type) for tensor in tensors]
    if recipe:
        file_type = file_type if recipe.file_type is None else recipe.file_type
        choices = choose_types(opened.model, recipe, options, has_importance=guidance is not None)
        check_choices(choices, str(checkpoint.path), has_importance=guidance is not None)
        if fallbacks := describe_fallbacks(choices):
            if wishes.strict:
                raise InputError(f"{checkpoint.path}: {'; '.join(fallbacks)}; drop --strict to accept that")
            notes += fallbacks
        if guidance:
            names = {tensor.name: tensor.name for tensor in tensors}
            notes += guidance.check(choices, names, names.keys())
    kept = Counter(c.type.name for c in choices if c.type not in PLAIN and c.type == c.tensor.type)
    notes += [
        f"{count} tensors stay in {name}, the grid of the checkpoint: their values are exact, not rounded again"
        for name, count in kept.items()
    ]
    choices = [replace(choice, type=GGMLType.F32) if _is_float32(choice.tensor) else choice for choice in choices]
    metadata["general.file_type"] = u32(file_type)
    metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    if recipe:
        metadata |= recipe_metadata(recipe, options, guidance)
    if wishes.adapters:
        metadata[_ADAPTERS] = array(ValueType.STRING, [adapter.origin() for adapter in wishes.adapters])
    made = [_retype(choice, opened.decoder, wishes) for choice in choices]
    model = Model(metadata, made)
    is_guided, allows = guidance is not None, wishes.allow_nonfinite
    return Conversion(checkpoint, model, file_type, notes, recipe, choices, is_guided, allows)


def _retype(choice: ChosenType, decoder: Decoder, wishes: Wishes) -> Tensor:
    tensor, guidance = choice.tensor, wishes.guidance
    if choice.type == tensor.type:
        return tensor if wishes.allow_nonfinite else refuse_nonfinite(tensor)
    return retype_tensor(
        tensor,
        choice.type,
        importance=guidance.of(tensor, tensor.name) if guidance else None,
        decoder=decoder,
        allow_nonfinite=wishes.allow_nonfinite,
    )


def estimate_memory(conversions: Sequence[Conversion], buffer_bytes: int = BUFFER_BYTES) -> int:
    """The most bytes of memory that writing takes, with the checkpoint's mapped pages."""
    # Besides what quantizing takes: rows as they are stored, and a copy of them that is reordered or unpacked.
    return _VOCABULARY_BYTES + plan.estimate_memory(conversions, buffer_bytes) + buffer_bytes


def buffer_for(conversions: Sequence[Conversion], memory: int) -> int:
    """The size of the buffers with which writing takes at most `memory` bytes. Raises InputError if there is none."""
    least = estimate_memory(conversions, 0)
    room = (memory - least) // 2
    if room < 0:
        raise InputError(f"{memory:,} bytes of memory are not enough to convert this model; it takes {least:,}")
    return min(BUFFER_BYTES, room)


def write_conversion(
    conversion: Conversion,
    target: str | Path | None = None,
    *,
    shard_bytes: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """`write_conversions` of one."""
    return write_conversions([conversion], [target], shard_bytes=shard_bytes, force=force, progress=progress)[0]


def write_conversions(
    conversions: Sequence[Conversion],
    targets: Sequence[str | Path | None],
    *,
    shard_bytes: int | None = None,
    buffer_bytes: int = BUFFER_BYTES,
    force: bool = False,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[list[Path]]:
    """Writes planned conversions of one checkpoint, which is read once, and returns the files of each.

    A target is a file, None for the default path, or a folder for the default name in it. An existing file of a
    default name is replaced under the conditions of `convert`. With `resume`, an interrupted call leaves the finished
    tensors in a hidden folder beside the first file, and the next one continues, of which `say` is told; without it,
    such a folder is removed at the end. Takes at most `estimate_memory` bytes. Raises InputError for weights that a
    type cannot hold, for NaN and infinity, and for two conversions with one target.
    """
    checkpoint = conversions[0].checkpoint
    named = [Path(target) if target and not Path(target).is_dir() else None for target in targets]
    paths = [
        name or Path(target or "") / conversion.default_path()
        for name, target, conversion in zip(named, targets, conversions, strict=True)
    ]
    if len(set(paths)) < len(paths):
        raise InputError(f"{paths[0]}: is the target of two types; name each type once")
    is_over = Event()
    with background_thread() as thread:
        digest = thread.submit(checkpoint.digest, is_over)  # runs while the tensors are read

        def is_of_source(metadata: Mapping[str, Value]) -> bool:
            own = conversions[0].model.metadata.get(_ADAPTERS)
            return metadata.get(_SOURCE_DIGEST) == string(digest.result()) and metadata.get(_ADAPTERS) == own

        outputs = [
            Output(
                path,
                _with_origin(conversion),
                shard_bytes=shard_bytes,
                may_replace=None if name or force else is_of_source,
                has_room=True,
            )
            for path, name, conversion in zip(paths, named, conversions, strict=True)
        ]
        try:
            written = write_together(
                outputs,
                window_weights=window_weights(buffer_bytes),
                progress=progress,
                inputs=checkpoint.inputs,
                seal=lambda: {_SOURCE_DIGEST: string(digest.result())},
                check=checkpoint.check_unchanged,
                resume=Resume(_identity(conversions), say) if resume else None,
            )
        except BadWeights as error:
            checkpoint.check_unchanged()
            cure = "take another --outtype" if error.is_overflow else "fetch it again, or keep them: --allow-nonfinite"
            raise InputError(f"{checkpoint.path}: {error}; {cure}") from None
        finally:
            is_over.set()
    if not resume:
        forget(written[0][0])
    return written


def _identity(conversions: Sequence[Conversion]) -> str:
    """What the bytes of the tensors depend on besides the headers of the files."""
    checkpoint = conversions[0].checkpoint
    states = [(str(path), status.st_size, status.st_mtime_ns) for path in checkpoint.inputs for status in [path.stat()]]
    tags = [(file.name, file.size, file.etag) for file in checkpoint.remote]
    return json.dumps([states, tags, [conversion.allows_nonfinite for conversion in conversions]])


def _with_origin(conversion: Conversion) -> Model:
    """The model with keys that record where it came from; the digest of the weights is not known yet."""
    checkpoint = conversion.checkpoint
    made = {
        "lltool.version": string(__version__),
        "lltool.convert.source": string(checkpoint.name),
        _SOURCE_DIGEST: string("0" * 64),
    }
    if checkpoint.revision:
        made["lltool.convert.source_revision"] = string(checkpoint.revision)
    return Model({**conversion.model.metadata, **made}, conversion.model.tensors)


_FLOAT32 = (
    *(".ffn_gate_inp.", "_norm.weight", ".ssm_conv1d", ".shortconv.conv."),
    *("position_embd.weight", "token_types.weight"),
)


def _is_float32(tensor: Tensor) -> bool:
    """Whether files have the tensor in float32, as llama.cpp reads it.

    These are vectors, convolutions, norms, routers, and embeddings of positions and of types of tokens.
    """
    name = tensor.name
    return len(tensor.shape) == 1 or not name.endswith("weight") or any(part in name for part in _FLOAT32)


def _file_type(tensors: Sequence[Tensor]) -> FileType:
    """The number for files whose matrices have, for the most part, the type of these."""
    weights = Counter[GGMLType]()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            weights[tensor.type] += tensor.rows * tensor.columns
    common = weights.most_common(1)[0][0]
    return FileType.MXFP4_MOE if common == GGMLType.MXFP4 else FileType[common.name]
