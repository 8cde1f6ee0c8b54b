"""Applies a recipe to a model: chooses the type of each tensor as llama-quantize does.

Source: llama-quant.cpp of llama.cpp (`tensor_allows_quantization`, `llama_tensor_get_type`).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lltool.gguf.architecture_keys import ArchitectureKeys
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.source import Source, Tensor
from lltool.quant.codec import ENCODED, NEEDS_IMPORTANCE
from lltool.quant.recipe_language import Recipe, Rule, layers_hold
from lltool.quant.recipes import KEPT, SUBSTITUTES

PLAIN = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})
"""The types that store each weight as a floating-point number."""

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"

# Maps parts of tensor names to classes of tensors; the first part that is found counts.
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
# Types with so few bits that the result is useless unless the encoder knows which columns matter.
_USELESS_UNGUIDED = frozenset(
    {GGMLType.IQ1_S, GGMLType.IQ1_M, GGMLType.IQ2_XXS, GGMLType.IQ2_XS, GGMLType.IQ2_S, GGMLType.IQ3_XXS}
)


@dataclass(frozen=True)
class Options:
    """The user's options beyond the recipe, under llama-quantize's names."""

    pure: bool = False  # every matrix gets the base type
    leave_output_tensor: bool = False
    output_tensor_type: GGMLType | None = None
    token_embedding_type: GGMLType | None = None
    tensor_types: tuple[tuple[str, GGMLType], ...] = ()  # (regular expression, type): the first found in a name counts


DEFAULTS = Options()


@dataclass(frozen=True)
class ChosenType:
    """The type that a tensor gets. `wanted` is the recipe's type, which differs if the shape does not allow it."""

    tensor: Tensor
    type: GGMLType
    wanted: GGMLType
    needs_importance: bool = False


def choose_types(
    source: Source, recipe: Recipe, options: Options = DEFAULTS, *, has_importance: bool = False
) -> list[ChosenType]:
    """A choice for each tensor of a model, in the order of the tensors."""
    chooser = _Chooser(source, recipe, options, has_importance)
    # Layers are counted in llama.cpp's order: by block, then by name. (Its --keep-split counts them in file order, but
    # a mix should not depend on how a file is split.)
    choices = {tensor.name: chooser.choose(tensor) for tensor in sorted(source.tensors, key=_order)}
    return [choices[tensor.name] for tensor in source.tensors]


class NeedsImportance(InputError):
    """A type was chosen that is of no use without importance."""


def check_choices(choices: Sequence[ChosenType], where: str, *, has_importance: bool = False) -> None:
    """Raises InputError, beginning with `where`, for a tensor that cannot be encoded as chosen.

    It is NeedsImportance where importance would help.
    """
    for choice in choices:
        if choice.type == choice.tensor.type:
            continue
        if choice.type not in ENCODED:
            raise InputError(
                f"{where}: {choice.tensor.name}: cannot encode to {choice.type.name}; "
                f"choose one of {', '.join(t.name for t in sorted(ENCODED))}"
            )
        if choice.needs_importance and not has_importance:
            raise NeedsImportance(
                f"{where}: {choice.tensor.name}: {choice.type.name} is of no use without importance; "
                f"make an importance file with `lltool imatrix` and give it as --imatrix"
            )


def check_patterns(source: Source, options: Options) -> None:
    """Raises InputError for a --tensor-type whose pattern is not one or matches no tensor's name."""
    for pattern, type in options.tensor_types:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"tensor type '{pattern}={type.name}': {error}") from None
        if not any(re.search(pattern, tensor.name) for tensor in source.tensors):
            raise InputError(
                f"--tensor-type {pattern}={type.name}: no tensor's name matches; names are like blk.0.attn_q.weight"
            )


def describe_fallbacks(choices: Sequence[ChosenType]) -> list[str]:
    """One line for each kind of fallback: the tensors, the reason, the type used instead and the extra MiB."""
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
            f"{type.name} is used instead ({more:+.1f} MiB)"
        )
    return notes


class _Chooser:
    """Chooses types for the tensors of a model in llama.cpp's order; counts the tensors of each class."""

    def __init__(self, source: Source, recipe: Recipe, options: Options, has_importance: bool) -> None:
        self.recipe, self.options, self.has_importance = recipe, options, has_importance
        stated = source.metadata.get("general.architecture")
        self.architecture = stated.data if stated and isinstance(stated.data, str) else ""
        keys = ArchitectureKeys(source.metadata, self.architecture)
        self.layers, self.experts = keys.count("block_count", 0), keys.count("expert_count", 0)
        heads = keys.count("attention.head_count", 0)
        kv_heads = keys.count("attention.head_count_kv", heads)
        self.gqa = heads // kv_heads if kv_heads else 0
        self.kept = KEPT["all"] + KEPT.get(self.architecture, ())
        self.is_tied = all(tensor.name != OUTPUT for tensor in source.tensors)
        self.values = sum(self.class_of(tensor.name) == "attn_v" for tensor in source.tensors)
        self.seen: Counter[str | None] = Counter()

    def class_of(self, name: str) -> str | None:
        if name == OUTPUT or (name in EMBEDDINGS and self.is_tied):
            return "output"
        if name in EMBEDDINGS:
            return "token_embd"
        return next((kind for part, kind in _CLASSES.items() if part in name), None)

    def choose(self, tensor: Tensor) -> ChosenType:
        wanted = None if self.is_kept(tensor) else self.wanted(tensor)
        if wanted is None:
            return ChosenType(tensor, tensor.type, tensor.type)
        type = _fit(wanted, tensor.columns)
        is_lookup = tensor.name == OUTPUT or tensor.name in EMBEDDINGS
        is_useless = type in _USELESS_UNGUIDED or type in self.recipe.needs_importance
        return ChosenType(tensor, type, wanted, type in NEEDS_IMPORTANCE or (is_useless and not is_lookup))

    def is_kept(self, tensor: Tensor) -> bool:
        name = tensor.name
        if tensor.rows < 2 or not name.endswith("weight") or any(part in name for part in self.kept):
            return True
        return name == OUTPUT and self.options.leave_output_tensor

    def wanted(self, tensor: Tensor) -> GGMLType | None:
        """The type from the options, or else from the recipe; None if the tensor keeps its type."""
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
        """For each condition that the rule states, whether it holds."""
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
        """The tensor's index in its class, its block, and the size of the class.

        A class usually has one tensor per layer; with experts it may have more, so the block serves as the index.
        """
        block = block_of(tensor.name)
        if kind == "attn_v":
            return self.seen[kind], block, self.values
        by_block = self.experts > 1 and block is not None and not rule.in_order
        return block if by_block and block is not None else self.seen[kind], block, self.layers


def block_of(name: str) -> int | None:
    """The number of a tensor's block, as 7 in `blk.7.attn_q.weight`; None if its name has none."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None


def _order(tensor: Tensor) -> tuple[int, str]:
    block = block_of(tensor.name)
    return -1 if block is None else block, tensor.name


def _fit(type: GGMLType, columns: int) -> GGMLType:
    """The type, or its first substitute whose blocks divide a row of `columns`."""
    while columns % LAYOUT[type].block:
        type = SUBSTITUTES.get(type, GGMLType.F16)
    return type
