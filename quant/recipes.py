"""Which tensor gets which type: llama-quantize's file types and rules, as data.

Source: llama-quant.cpp of llama.cpp (`tensor_allows_quantization`, `llama_tensor_get_type`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lltool.gguf.errors import InputError
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.source import Tensor

PLAIN = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})
"""Types that store each weight as a float."""


@dataclass(frozen=True)
class Recipe:
    """A file type: `base` for the matrices, `output` for output.weight or the token embedding that stands in for it."""

    file_type: FileType
    base: GGMLType
    output: GGMLType
    note: str

    @property
    def name(self) -> str:
        return self.file_type.name


RECIPES: dict[FileType, Recipe] = {
    row.file_type: row
    for row in (
        Recipe(FileType.F32, GGMLType.F32, GGMLType.F32, "32 bits a weight"),
        Recipe(FileType.F16, GGMLType.F16, GGMLType.F16, "16 bits a weight"),
        Recipe(FileType.BF16, GGMLType.BF16, GGMLType.BF16, "16 bits a weight, the range of F32"),
        Recipe(FileType.Q4_0, GGMLType.Q4_0, GGMLType.Q6_K, "4.5 bits a weight, the fastest"),
        Recipe(FileType.Q4_1, GGMLType.Q4_1, GGMLType.Q6_K, "5 bits a weight"),
        Recipe(FileType.Q5_0, GGMLType.Q5_0, GGMLType.Q6_K, "5.5 bits a weight"),
        Recipe(FileType.Q5_1, GGMLType.Q5_1, GGMLType.Q6_K, "6 bits a weight"),
        Recipe(FileType.Q6_K, GGMLType.Q6_K, GGMLType.Q6_K, "6.6 bits a weight"),
        Recipe(FileType.Q8_0, GGMLType.Q8_0, GGMLType.Q8_0, "8.5 bits a weight, hard to tell from F16"),
    )
}

# Matrices that stay as they are: small, and the model is sensitive to them or the engines want them so.
_KEPT = (
    *(
        "_norm.weight",
        "ffn_gate_inp",
        "ffn_gate_tid2eid",
        "altup",
        "laurel",
        "per_layer_model_proj",
        "attn_rel_b.weight",
    ),
    *("position_embd.weight", "token_types.weight", "ssm_conv1d", "shortconv.conv", "indexer.k_proj", "indexer.q_proj"),
    *("time_mix_first.weight", "time_mix_lerp_fused.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight"),
    *(f"time_mix_{part}.weight" for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
    *("a.rvq.codebook", "mm.a.code_embd"),
)

# The type for rows that are not whole blocks of the one wanted.
_NARROWER = {
    GGMLType.Q2_0: GGMLType.Q4_0,
    GGMLType.Q2_K: GGMLType.Q4_0,
    GGMLType.Q3_K: GGMLType.Q4_0,
    GGMLType.TQ1_0: GGMLType.Q4_0,
    GGMLType.TQ2_0: GGMLType.Q4_0,
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q6_K: GGMLType.Q8_0,
    GGMLType.IQ1_S: GGMLType.IQ4_NL,
    GGMLType.IQ1_M: GGMLType.IQ4_NL,
    GGMLType.IQ2_XXS: GGMLType.IQ4_NL,
    GGMLType.IQ2_XS: GGMLType.IQ4_NL,
    GGMLType.IQ2_S: GGMLType.IQ4_NL,
    GGMLType.IQ3_XXS: GGMLType.IQ4_NL,
    GGMLType.IQ3_S: GGMLType.IQ4_NL,
    GGMLType.IQ4_XS: GGMLType.IQ4_NL,
}


@dataclass(frozen=True)
class Options:
    """What the user asks for beyond the file type, under llama-quantize's names."""

    pure: bool = False  # the base type for every matrix
    leave_output_tensor: bool = False
    output_tensor_type: GGMLType | None = None
    token_embedding_type: GGMLType | None = None


DEFAULTS = Options()


@dataclass(frozen=True)
class Choice:
    """The type a tensor gets; `wanted` differs from it where the shape does not allow what the recipe says."""

    tensor: Tensor
    type: GGMLType
    wanted: GGMLType


def find_recipe(name: str) -> Recipe:
    """The recipe of a file type's name, in any case, or number."""
    text = name.upper()
    for file_type, recipe in RECIPES.items():
        if text in (file_type.name, str(int(file_type))):
            return recipe
    raise InputError(f"file type {name!r} is not one of {', '.join(recipe.name for recipe in RECIPES.values())}")


def choose_types(tensors: Sequence[Tensor], recipe: Recipe, options: Options = DEFAULTS) -> list[Choice]:
    """A choice for each tensor of a model, in their order."""
    is_tied = all(tensor.name != "output.weight" for tensor in tensors)
    return [_choose(tensor, recipe, options, is_tied) for tensor in tensors]


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


def _is_kept(tensor: Tensor) -> bool:
    """Whether the recipes leave this tensor as it is."""
    return len(tensor.shape) < 2 or not tensor.name.endswith("weight") or any(part in tensor.name for part in _KEPT)


def _choose(tensor: Tensor, recipe: Recipe, options: Options, is_tied: bool) -> Choice:
    if _is_kept(tensor) or (tensor.name == "output.weight" and options.leave_output_tensor):
        return Choice(tensor, tensor.type, tensor.type)
    wanted = _wanted(tensor.name, recipe, options, is_tied)
    return Choice(tensor, _fit(wanted, tensor.columns), wanted)


def _wanted(name: str, recipe: Recipe, options: Options, is_tied: bool) -> GGMLType:
    is_output = name == "output.weight" or (is_tied and name == "token_embd.weight")
    if options.token_embedding_type is not None and name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return options.token_embedding_type
    if options.output_tensor_type is not None and is_output:
        return options.output_tensor_type
    return recipe.output if is_output and not options.pure else recipe.base


def _fit(type: GGMLType, columns: int) -> GGMLType:
    """The type, or the next one whose blocks fill a row of `columns`."""
    while columns % LAYOUT[type].block:
        type = _NARROWER.get(type, GGMLType.F16)
    return type
