"""Recipes applied to a model: the type of each tensor, as llama-quantize chooses it, and what that forces.

Source: llama-quant.cpp of llama.cpp (`tensor_allows_quantization`, `llama_tensor_get_type`).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.metadata import Value
from lltool.gguf.source import Source, Tensor
from lltool.quant.codec import ENCODED, NEEDS_IMPORTANCE
from lltool.quant.recipe_language import Recipe, Rule, layers_hold
from lltool.quant.recipes import KEPT, SUBSTITUTES

PLAIN = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})
"""Types that store each weight as a float."""

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"

# Parts of names to classes of tensors; the first that is found counts.
_CLASSES = {
    "attn_qkv.weight": "attn_v",
    "attn_kv_b.weight": "attn_v",
    "attn_v.weight": "attn_v",
    "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q",
    "attn_output.weight": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}
# Types of so few bits that the result is useless where the encoder does not know which columns matter.
_NEED_IMPORTANCE = frozenset(
    {GGMLType.IQ1_S, GGMLType.IQ1_M, GGMLType.IQ2_XXS, GGMLType.IQ2_XS, GGMLType.IQ2_S, GGMLType.IQ3_XXS}
)


@dataclass(frozen=True)
class Options:
    """What the user asks for beyond the recipe, under llama-quantize's names."""

    pure: bool = False  # the base type for every matrix
    leave_output_tensor: bool = False
    output_tensor_type: GGMLType | None = None
    token_embedding_type: GGMLType | None = None
    tensor_types: tuple[tuple[str, GGMLType], ...] = ()  # regular expression found in the name, type; the first counts


DEFAULTS = Options()


@dataclass(frozen=True)
class Choice:
    """The type a tensor gets; `wanted` differs from it where the shape does not allow what the recipe says."""

    tensor: Tensor
    type: GGMLType
    wanted: GGMLType
    needs_importance: bool = False


def choose_types(
    source: Source, recipe: Recipe, options: Options = DEFAULTS, *, has_importance: bool = False
) -> list[Choice]:
    """A choice for each tensor of a model, in their order."""
    chooser = _Chooser(source, recipe, options, has_importance)
    # Layers are counted in llama.cpp's order: by block, then by name. (Its --keep-split counts them as they lie in the
    # file; a mix should not depend on how a file is cut.)
    choices = {tensor.name: chooser.choose(tensor) for tensor in sorted(source.tensors, key=_order)}
    return [choices[tensor.name] for tensor in source.tensors]


def check_choices(choices: Sequence[Choice], where: str, *, has_importance: bool = False) -> None:
    """Raises InputError, beginning with `where`, for a tensor that cannot be made."""
    for choice in choices:
        if choice.type == choice.tensor.type:
            continue
        if choice.type not in ENCODED:
            raise InputError(
                f"{where}: {choice.tensor.name}: cannot encode to {choice.type.name}; "
                f"choose of {', '.join(t.name for t in sorted(ENCODED))}"
            )
        if choice.needs_importance and not has_importance:
            raise InputError(
                f"{where}: {choice.tensor.name}: {choice.type.name} is of no use without importance; "
                f"make some with `lltool imatrix` and give it to `lltool quantize` as --imatrix"
            )


def check_patterns(source: Source, options: Options) -> None:
    """Raises InputError for a --tensor-type that is found in no name."""
    for pattern, type in options.tensor_types:
        if not any(re.search(pattern, tensor.name) for tensor in source.tensors):
            raise InputError(
                f"--tensor-type {pattern}={type.name}: no tensor's name matches; names are like blk.0.attn_q.weight"
            )


def describe_fallbacks(choices: Sequence[Choice]) -> list[str]:
    """A line for each kind of fallback: how many tensors, why, what they become and what that costs."""
    kinds: dict[tuple[int, GGMLType, GGMLType], list[Tensor]] = {}
    for choice in choices:
        if choice.type != choice.wanted:
            kinds.setdefault((choice.tensor.columns, choice.wanted, choice.type), []).append(choice.tensor)
    notes = []
    for (columns, wanted, type), tensors in kinds.items():
        weights = sum(tensor.rows * tensor.columns for tensor in tensors)
        more = weights * (LAYOUT[type].bits_per_weight - LAYOUT[wanted].bits_per_weight) / 8 / 2**20
        names = tensors[0].name + (f" and {len(tensors) - 1} more" if len(tensors) > 1 else "")
        notes.append(
            f"{names}: rows of {columns} are not whole {wanted.name} blocks of {LAYOUT[wanted].block}; "
            f"{type.name} instead ({more:+.1f} MiB)"
        )
    return notes


@dataclass(frozen=True)
class _Shape:
    """What rules ask of a model as a whole."""

    metadata: Mapping[str, Value]

    @cached_property
    def architecture(self) -> str:
        found = self.metadata.get("general.architecture")
        return found.data if found and isinstance(found.data, str) else ""

    def number(self, key: str, default: int) -> int:
        """A count of the model's, the first layer's where each has its own."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        data = None if value is None else value.data if value.item is None else next(iter(value.data), None)
        return default if data is None or isinstance(data, str) else int(data)

    @property
    def gqa(self) -> int:
        heads = self.number("attention.head_count", 0)
        kv_heads = self.number("attention.head_count_kv", heads)
        return heads // kv_heads if kv_heads else 0


class _Chooser:
    """Goes through the tensors of a model in llama.cpp's order; keeps count of the classes."""

    def __init__(self, source: Source, recipe: Recipe, options: Options, has_importance: bool) -> None:
        self.recipe, self.options, self.has_importance = recipe, options, has_importance
        shape = _Shape(source.metadata)
        self.architecture = shape.architecture
        self.layers, self.experts, self.gqa = shape.number("block_count", 0), shape.number("expert_count", 0), shape.gqa
        self.kept = KEPT["all"] + KEPT.get(shape.architecture, ())
        self.is_tied = all(tensor.name != OUTPUT for tensor in source.tensors)
        self.values = sum(self.class_of(tensor.name) == "attn_v" for tensor in source.tensors)
        self.seen: Counter[str | None] = Counter()

    def class_of(self, name: str) -> str | None:
        if name == OUTPUT or (name in EMBEDDINGS and self.is_tied):
            return "output"
        if name in EMBEDDINGS:
            return "token_embd"
        return next((kind for part, kind in _CLASSES.items() if part in name), None)

    def choose(self, tensor: Tensor) -> Choice:
        wanted = None if self.is_kept(tensor) else self.wanted(tensor)
        if wanted is None:
            return Choice(tensor, tensor.type, tensor.type)
        type = _fit(wanted, tensor.columns)
        is_lookup = tensor.name == OUTPUT or tensor.name in EMBEDDINGS
        is_useless = type in _NEED_IMPORTANCE or type in self.recipe.needs_importance
        return Choice(tensor, type, wanted, type in NEEDS_IMPORTANCE or (is_useless and not is_lookup))

    def is_kept(self, tensor: Tensor) -> bool:
        name = tensor.name
        if len(tensor.shape) < 2 or not name.endswith("weight") or any(part in name for part in self.kept):
            return True
        return name == OUTPUT and self.options.leave_output_tensor

    def wanted(self, tensor: Tensor) -> GGMLType | None:
        """What the options say, else what the recipe says."""
        options, name, kind = self.options, tensor.name, self.class_of(tensor.name)
        named = next((type for pattern, type in options.tensor_types if re.search(pattern, name)), None)
        if options.token_embedding_type is not None and name in EMBEDDINGS and (name == EMBEDDINGS[0] or named is None):
            return options.token_embedding_type
        if options.output_tensor_type is not None and name == OUTPUT:
            return options.output_tensor_type
        if named is not None:
            return named
        if options.output_tensor_type is not None and kind == "output":
            return options.output_tensor_type
        if self.recipe.base is None or options.pure:
            return self.recipe.base
        type = self.recipe.base
        for rule in self.recipe.rules:
            if self.holds(rule, tensor, kind, type):
                type = self.recipe.base if rule.type is None else rule.type
        self.seen[kind] += 1
        return type

    def holds(self, rule: Rule, tensor: Tensor, kind: str | None, so_far: GGMLType) -> bool:
        return all(self.conditions(rule, tensor, kind, so_far))

    def conditions(self, rule: Rule, tensor: Tensor, kind: str | None, so_far: GGMLType) -> Iterator[bool]:
        """Whether each of the conditions that are given holds."""
        if rule.tensors:
            yield kind in rule.tensors or tensor.name in rule.tensors
        if rule.match is not None:
            yield re.search(rule.match, tensor.name) is not None
        if rule.architectures:
            yield self.architecture in rule.architectures
        if rule.importance is not None:
            yield self.has_importance == rule.importance
        if rule.stacked is not None:
            yield (len(tensor.shape) > 2 and tensor.shape[-3] > 1) == rule.stacked
        if rule.ragged is not None and self.recipe.base is not None:
            yield (tensor.columns % LAYOUT[self.recipe.base].block != 0) == rule.ragged
        if rule.layer_count is not None:
            yield self.layers == rule.layer_count
        if rule.min_gqa is not None:
            yield self.gqa >= rule.min_gqa
        if rule.experts is not None:
            yield self.experts == rule.experts
        if rule.min_experts is not None:
            yield self.experts >= rule.min_experts
        if rule.instead_of:
            yield so_far in rule.instead_of
        if rule.layers is not None:
            yield layers_hold(rule.layers, *self.place(rule, tensor, kind))

    def place(self, rule: Rule, tensor: Tensor, kind: str | None) -> tuple[int, int | None, int]:
        """Which tensor of its class it is, its block, and how many the class has.

        Tensors of a class come one a layer; in a model with experts there may be more, so the block counts.
        """
        block = block_of(tensor.name)
        if kind == "attn_v":
            return self.seen[kind], block, self.values
        by_block = self.experts > 1 and block is not None and not rule.in_order
        return block if by_block and block is not None else self.seen[kind], block, self.layers


def block_of(name: str) -> int | None:
    """7 of blk.7.attn_q.weight."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None


def _order(tensor: Tensor) -> tuple[int, str]:
    block = block_of(tensor.name)
    return -1 if block is None else block, tensor.name


def _fit(type: GGMLType, columns: int) -> GGMLType:
    """The type, or the next one whose blocks fill a row of `columns`."""
    while columns % LAYOUT[type].block:
        type = SUBSTITUTES.get(type, GGMLType.F16)
    return type
