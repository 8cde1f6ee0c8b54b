"""A LoRA adapter of peft as a GGUF adapter, in the layout of llama.cpp's convert_lora_to_gguf.py.

A matrix NAME of the base gets two tensors, `NAME.lora_a` (rank, inputs) and `NAME.lora_b` (outputs, rank), which are
stacks for experts; of the embedding, `lora_a` is (tokens, rank). Readers multiply their product with
adapter.lora.alpha / rank. Whatever else an adapter's scale depends on is multiplied into `lora_b`.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lltool import __version__
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.hub import download, parse_hub_name
from lltool.gguf.metadata import f32, string
from lltool.gguf.names import describe_missing
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant.codec import BadWeights
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.families.family import EMBEDDING, HEAD
from lltool.quant.convert.families.registry import find_family
from lltool.quant.convert.families.rows import expand
from lltool.quant.convert.families.sizes import Sizes
from lltool.quant.convert.lora import Adapter, values_of
from lltool.quant.convert.low_rank import LowRank, change_factors, float_tensor, no_change
from lltool.quant.convert.packed.numbers import Floats
from lltool.quant.convert.wrong_content import MERGE_IT
from lltool.quant.retype import retype_tensor

OUTTYPES = {"f32": GGMLType.F32, "f16": GGMLType.F16, "bf16": GGMLType.BF16, "q8_0": GGMLType.Q8_0}
"""The types of adapters besides "auto", which keeps what peft stored."""

_PARTS = re.compile(r"(.*)\.lora_(embedding_)?([AB])(?:\.weight)?")


@dataclass(frozen=True)
class AdapterPlan:
    """A planned adapter file; `changed` are the names of the base's matrices that it changes."""

    adapter: Adapter
    model: Model
    changed: tuple[str, ...]
    rank: int  # the largest

    def default_path(self) -> Path:
        return Path(f"{self.adapter.path.resolve().name}-lora.gguf")


def plan_adapter(adapter: Adapter, base: str | None = None, outtype: str = "auto") -> AdapterPlan:
    """Plans the file of an adapter. Its weights are read, and none of its base's, only the config.

    `base` is a checkpoint's folder or its id on the Hub (default: what the adapter's config names). Raises InputError
    for an adapter of another base, and for what a file of factors cannot hold: DoRA, biases, matrices that were trained
    whole, an output matrix that the base shares with its embedding.
    """
    config_file = _find_config(adapter, base)
    family, config = find_family(read_json(config_file), str(config_file))
    family.describe(config)
    config.values["vocab_size"] = config.integer("vocab_size")
    sizes = Sizes(config.values)
    left = _read_pairs(adapter, family.plain)
    made: dict[str, LowRank] = {}
    kinds: dict[str, GGMLType] = {}
    for row in expand(family.rows, config.values):
        shape = sizes.shape(row.shape)
        found = [_find(adapter, left, source, shape) for source in row.sources(sizes)] if len(shape) > 1 else []
        taken = [pair for pair, _ in filter(None, found)]
        if not taken or made.keys() & set(row.targets) or not row.is_wanted(config.values):
            continue
        name = f"{adapter.file.path}: {taken[0].module}"
        if HEAD in row.targets and config.get("tie_word_embeddings"):
            raise InputError(f"{name}: changes the output matrix, which the base shares with its embedding; {MERGE_IT}")
        try:
            factors = change_factors(row.change, [one[1] if one else no_change(shape) for one in found], sizes)
        except InputError as error:
            raise InputError(f"{name}: {error}; {MERGE_IT}") from None
        made |= dict(zip(row.targets, factors, strict=True))
        kinds |= dict.fromkeys(row.targets, taken[0].type)
        left = [pair for pair in left if pair not in taken]
    if left:
        raise InputError(
            f"{adapter.file.path}: {left[0].module}: changes ({len(left[0].up)}, {left[0].down.shape[1]}), and "
            f"{family.models[0]} with the config {config_file} has none of this name and shape; is this its base? name "
            "another with --base"
        )
    alpha = adapter.config.get("lora_alpha")
    stated = float(alpha) if isinstance(alpha, int | float) and alpha > 0 else 1.0
    tensors = [tensor for name in made for tensor in _tensors(name, made[name], stated, kinds[name], outtype)]
    metadata = {
        "general.architecture": string(family.architecture),
        "general.type": string("adapter"),
        "general.name": string(adapter.path.resolve().name),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": f32(stated),
        "lltool.version": string(__version__),
        "lltool.convert.source": string(adapter.origin()),
    }
    changed = tuple(made)
    if not changed:
        raise InputError(f"{adapter.file.path}: holds no factors of low rank; is the adapter empty?")
    return AdapterPlan(adapter, Model(metadata, tensors), changed, max(made[name].rank for name in changed))


def write_adapter(plan: AdapterPlan, target: str | Path | None = None) -> Path:
    """Writes the file, by default `NAME-lora.gguf` in the working folder. Raises InputError as `write_gguf` does."""
    path = Path(target) if target else plan.default_path()
    if path.is_dir():
        path = path / plan.default_path()
    inputs = [plan.adapter.file.path, plan.adapter.path / "adapter_config.json"]
    try:
        return write_gguf(path, plan.model, inputs=inputs)[0]
    except BadWeights as error:
        raise InputError(f"{plan.adapter.file.path}: {error}; take another --outtype") from None


def _find_config(adapter: Adapter, base: str | None) -> Path:
    named = base or adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise InputError(f"{adapter.path / 'adapter_config.json'}: names no base; give its folder or id with --base")
    folder = Path(named)
    if not folder.is_dir():
        hub = parse_hub_name(named)
        if folder.exists() or hub is None or hub.type or hub.file:
            wanted = "the base's checkpoint: its folder, or its id on the Hub, with --base"
            raise InputError(
                f"{named}: a file, wanted {wanted}" if folder.exists() else describe_missing(folder, wanted)
            )
        folder = download(hub.id, ["config.json"])
    return folder / "config.json"


@dataclass(frozen=True, eq=False)
class _Pair:
    """A and B of a module as peft stores them, (rank, inputs) and (outputs, rank); ranks of a stack are in one axis.

    `module` has the table's name; that of a stack is the module of its parameter.
    """

    module: str
    down: Floats
    up: Floats
    type: GGMLType
    is_embedding: bool = False

    def factors(self, adapter: Adapter, shape: tuple[int, ...]) -> LowRank | None:
        """The factors of a matrix, or a stack, of this shape in the checkpoint; None if they do not fit it."""
        rank, up, down = len(self.down), self.up, self.down
        if len(shape) == 3:
            if rank % shape[0]:
                return None
            rank //= shape[0]
            down = down.reshape(shape[0], rank, down.shape[1])  # experts, then ranks
            up = up.reshape(len(up), rank, shape[0]).transpose(2, 0, 1)  # ranks, then experts
        ways = [LowRank(up, down), LowRank(down.swapaxes(-1, -2), up.swapaxes(-1, -2))]
        if len(shape) < 3:
            is_turned = self.is_embedding or bool(adapter.config.get("fan_in_fan_out"))
            ways = ways[1:] if is_turned else ways[:1]
        fits = [way for way in ways if way.shape == shape]
        if len(fits) > 1:
            raise InputError(f"{adapter.file.path}: {self.module}: fits its square stack both ways; merge it with peft")
        return replace(fits[0], scale=adapter.factor(self.module, rank)) if fits else None


def _read_pairs(adapter: Adapter, plain: Callable[[str], str]) -> list[_Pair]:
    parts: dict[tuple[str, bool], dict[str, str]] = {}
    for name in adapter.file.names:
        found = _PARTS.fullmatch(name)
        if name.endswith(".base_layer.weight"):  # peft stores the base's own embedding or output matrix beside them
            continue
        if not found:
            what = "a magnitude of DoRA" if "lora_magnitude" in name else "a part that was trained whole"
            raise InputError(f"{adapter.file.path}: {name}: {what}, which an adapter file cannot hold; {MERGE_IT}")
        parts.setdefault((found[1], bool(found[2])), {})[found[3]] = name
    pairs = []
    for (module, is_embedding), names in parts.items():
        if names.keys() != {"A", "B"}:
            raise InputError(f"{adapter.file.path}: {module}: has only one of the two matrices; the file is damaged")
        down, up = (values_of(adapter, names[part]) for part in "AB")
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
            raise InputError(f"{adapter.file.path}: {module}: shapes {down.shape} and {up.shape} do not fit together")
        plain_module = plain(f"{module.replace('.base_layer', '')}.weight").removesuffix(".weight")
        pairs.append(_Pair(plain_module, down, up, adapter.file.tensor(names["A"]).type, is_embedding))
    return pairs


def _find(adapter: Adapter, pairs: list[_Pair], source: str, shape: tuple[int, ...]) -> tuple[_Pair, LowRank] | None:
    """The pair that changes a tensor of the checkpoint, and its factors."""
    module = source.removesuffix(".weight") if source.endswith(".weight") else source.rpartition(".")[0]
    for pair in pairs:
        if pair.module == module and (factors := pair.factors(adapter, shape)):
            return pair, factors
    return None


def _tensors(name: str, factor: LowRank, alpha: float, stored: GGMLType, outtype: str) -> Iterator[Tensor]:
    """`lora_a` and `lora_b`, such that alpha / rank is the scale that is left for a reader to multiply with."""
    ratio = factor.scale * factor.rank / alpha
    is_same = math.isclose(ratio, 1, rel_tol=1e-9)
    up = factor.up if is_same else factor.up * np.float32(ratio)
    down = np.ascontiguousarray(factor.up if name == EMBEDDING else factor.down)
    if name == EMBEDDING:
        up = np.ascontiguousarray(factor.down.T if is_same else factor.down.T * np.float32(ratio))
    for suffix, values in (("lora_a", down), ("lora_b", up)):
        wanted = (stored if is_same or suffix == "lora_a" else GGMLType.F32) if outtype == "auto" else OUTTYPES[outtype]
        if wanted == GGMLType.Q8_0 and values.shape[-1] % 32:
            wanted = GGMLType.F16
        yield retype_tensor(float_tensor(f"{name}.{suffix}", values), wanted)
