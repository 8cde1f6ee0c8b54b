"""The choice of types against llama-quantize's, and in models of other shapes."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType, array, string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model, Source, Tensor
from lltool.quant.choose import ChosenType, Options, check_choices, choose_types
from lltool.quant.recipe_language import Recipe, Rule
from lltool.quant.recipes import find_recipe


@pytest.fixture(scope="module")
def smollm2(llama_quantized: dict[str, Any], real_model: Callable[[str], Path]) -> tuple[Source, dict[str, Any]]:
    """The model's F16 file, and llama-quantize's results for it."""
    types = llama_quantized["F16"]["tensors"]
    with open_gguf(real_model("smollm2-q4_1")) as file:
        tensors = [replace(tensor, type=GGMLType[types[tensor.name][0]]) for tensor in file.tensors]
        return Model(file.metadata, tensors), llama_quantized


def test_types_are_llama_quantizes(smollm2: tuple[Source, dict[str, Any]]) -> None:
    model, golden = smollm2
    refused = 0
    for key, wanted in golden.items():
        name, _, how = key.partition("+")
        recipe, has_importance = find_recipe(name), how == "imatrix"
        choices = choose_types(model, recipe, Options(pure=how == "pure"), has_importance=has_importance)
        if "refused" in wanted:
            refused += 1
            assert any(choice.needs_importance for choice in choices), key
            continue
        assert has_importance or not any(choice.needs_importance for choice in choices), key
        types = {name: type for name, (type, _) in wanted["tensors"].items()}
        assert {choice.tensor.name: choice.type.name for choice in choices} == types, key
        assert recipe.file_type == wanted["file_type"], key
    assert (len(golden), refused) == (70, 7)


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name, GGMLType.F16, shape, lambda start, stop: np.zeros((stop - start, 2 * shape[-1]), np.uint8))


TIED = [
    tensor("token_embd.weight", 512, 256),
    tensor("blk.0.ffn_down.weight", 256, 512),
    tensor("output_norm.weight", 256),
]
UNTIED = [*TIED, tensor("output.weight", 512, 256)]
NO_OPTIONS = Options()


def types(tensors: list[Tensor], recipe: str, options: Options = NO_OPTIONS) -> list[str]:
    return [choice.type.name for choice in choose_types(Model({}, tensors), find_recipe(recipe), options)]


def test_the_output_gets_more_bits_and_so_does_a_tied_embedding() -> None:
    assert types(TIED, "Q4_0") == ["Q6_K", "Q4_0", "F16"]
    assert types(UNTIED, "Q4_0") == ["Q4_0", "Q4_0", "F16", "Q6_K"]
    assert types(UNTIED, "Q8_0") == ["Q8_0", "Q8_0", "F16", "Q8_0"]
    assert types(UNTIED, "IQ2_M")[0] == "IQ3_S"
    assert types(UNTIED, "COPY") == ["F16"] * 4


def test_options_override_the_recipe() -> None:
    assert types(UNTIED, "Q4_0", Options(pure=True)) == ["Q4_0", "Q4_0", "F16", "Q4_0"]
    assert types(UNTIED, "Q4_0", Options(leave_output_tensor=True)) == ["Q4_0", "Q4_0", "F16", "F16"]
    chosen = Options(pure=True, output_tensor_type=GGMLType.Q8_0, token_embedding_type=GGMLType.Q5_1)
    assert types(UNTIED, "Q4_0", chosen) == ["Q5_1", "Q4_0", "F16", "Q8_0"]
    assert types(TIED, "Q4_0", Options(output_tensor_type=GGMLType.Q8_0)) == ["Q8_0", "Q4_0", "F16"]


def test_tensor_types_are_found_in_names_and_the_first_counts() -> None:
    named = Options(tensor_types=(("ffn_(down|up)", GGMLType.Q5_1), ("blk", GGMLType.Q8_0), ("outp", GGMLType.Q5_0)))
    assert types(UNTIED, "Q4_0", named) == ["Q4_0", "Q5_1", "F16", "Q5_0"]
    over_all = replace(named, output_tensor_type=GGMLType.F32, pure=True)
    assert types(UNTIED, "Q4_0", over_all) == ["Q4_0", "Q5_1", "F16", "F32"]
    embeddings = [*UNTIED, tensor("per_layer_token_embd.weight", 512, 256)]
    both = Options(token_embedding_type=GGMLType.Q8_0, tensor_types=(("token_embd", GGMLType.Q5_1),))
    assert types(embeddings, "Q4_0", both)[0::4] == ["Q8_0", "Q5_1"]


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_norm.weight",  # a norm, even of two dimensions
        "blk.0.ffn_gate_inp.weight",
        "blk.0.time_mix_w1.weight",
        "blk.0.ssm_conv1d.weight",
        "position_embd.weight",
        "blk.0.attn_q.bias",
    ],
)
def test_small_and_sensitive_matrices_are_kept(name: str) -> None:
    assert types([tensor(name, 32, 64), *UNTIED], "Q4_0")[0] == "F16"


def test_a_matrix_of_one_row_is_kept_as_a_vector_is() -> None:
    """As in ggml, where trailing axes of length 1 do not count."""
    assert types([tensor("blk.0.ffn_gate_inp_shexp.weight", 1, 64), *UNTIED], "Q4_0")[0] == "F16"


@pytest.mark.parametrize(
    ("recipe", "columns", "expected"),
    [("Q6_K", 576, "Q8_0"), ("Q6_K", 100, "F16"), ("Q4_0", 48, "F16"), ("BF16", 7, "BF16"), ("Q2_0", 96, "Q4_0")],
)
def test_shapes_that_do_not_fit_fall_back(recipe: str, columns: int, expected: str) -> None:
    [choice] = choose_types(Model({}, [tensor("blk.0.attn_q.weight", 8, columns)]), find_recipe(recipe))
    assert (choice.type.name, choice.wanted.name) == (expected, recipe)


PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
FUSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
LATENT = ("attn_q", "attn_kv_b", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def model_of(
    architecture: str,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    experts: int = 0,
    is_shared: bool = False,
    parts: tuple[str, ...] = PARTS,
) -> Model:
    """A model of that shape; with `is_shared` it also has shared experts, and none in its first block."""
    metadata: dict[str, Value] = {
        "general.architecture": string(architecture),
        f"{architecture}.block_count": u32(layers),
        f"{architecture}.expert_count": u32(experts),
        f"{architecture}.attention.head_count": u32(heads),
        f"{architecture}.attention.head_count_kv": u32(kv_heads),
    }
    tensors = [UNTIED[0], UNTIED[-1]]
    for block in reversed(range(layers)):  # the order in the file does not matter
        for part in parts:
            if "ffn" in part and experts and not (is_shared and block == 0):
                tensors.append(tensor(f"blk.{block}.{part}_exps.weight", 8, 256, 256))
                if is_shared:
                    tensors.append(tensor(f"blk.{block}.{part}_shexp.weight", 256, 256))
            else:
                tensors.append(tensor(f"blk.{block}.{part}.weight", 256, 256))
    return Model(metadata, tensors)


SHAPES = {
    "llama-8B": model_of("llama", 32, 32, 8),
    "llama-70B": model_of("llama", 80, 64, 8),
    "mixtral": model_of("llama", 32, 32, 8, experts=8),
    "falcon": model_of("falcon", 32, 71, 1, parts=FUSED),
    "deepseek2": model_of("deepseek2", 27, 16, 16, experts=64, is_shared=True, parts=LATENT),
}
EXPECTED = [line for line in Path(__file__).with_name("llama_types.txt").read_text().splitlines() if line[0] != "#"]


def mixed_types(choices: list[ChosenType], base: str) -> str:
    """Lists the parts that are not all of type `base`, as in ` ffn_down=Q6_K*2,Q4_K output=Q6_K`."""
    parts: dict[str, list[tuple[int, str]]] = {}
    for choice in choices:
        match = re.match(r"(?:blk\.(\d+)\.)?(\w+)\.weight", choice.tensor.name)
        assert match
        parts.setdefault(match[2], []).append((int(match[1] or 0), choice.type.name))
    text = ""
    for part, types in sorted(parts.items()):
        runs = [(type, len(list(run))) for type, run in groupby(type for _, type in sorted(types))]
        if [type for type, _ in runs] != [base]:
            text += f" {part}=" + ",".join(f"{type}*{count}" if count > 1 else type for type, count in runs)
    return text


@pytest.mark.parametrize("shape", list(SHAPES))
def test_types_in_models_of_other_shapes(shape: str) -> None:
    found = []
    expected = [line for line in EXPECTED if line.split()[0] == shape]
    for line in expected:
        recipe = find_recipe(line.split()[1])
        assert recipe.base
        found.append(f"{shape} {recipe.name}" + mixed_types(choose_types(SHAPES[shape], recipe), recipe.base.name))
    assert found == expected
    assert len(found) == 32


@pytest.mark.parametrize(("kv_heads", "type"), [([2, 8], "Q4_K"), ([8, 2], "Q3_K"), ([0, 2], "Q3_K"), ([], "Q3_K")])
def test_the_first_layers_heads_count_if_layers_differ(kv_heads: list[int], type: str) -> None:
    model = model_of("llama", 2, 8, 8)
    numbers = array(ValueType.UINT32, np.array(kv_heads, np.uint32))
    model = Model({**model.metadata, "llama.attention.head_count_kv": numbers}, model.tensors)
    choices = {choice.tensor.name: choice.type.name for choice in choose_types(model, find_recipe("Q2_K"))}
    assert choices["blk.1.attn_v.weight"] == type


def test_rules_of_a_users_recipe() -> None:
    rules = (
        Rule(GGMLType.Q6_K, ("blk.1.ffn_down.weight",)),
        Rule(GGMLType.Q8_0, match="attn_[qk]", layers="1-2"),
        Rule(GGMLType.F16, ("attn_v",), stacked=True),
        Rule(None, match="attn_k"),
    )
    recipe = Recipe("mine", GGMLType.Q5_0, None, rules=rules)
    choices = choose_types(model_of("llama", 3, 4, 4), recipe)
    changed = {choice.tensor.name: choice.type.name for choice in choices if choice.type != GGMLType.Q5_0}
    assert changed == {"blk.1.ffn_down.weight": "Q6_K", "blk.1.attn_q.weight": "Q8_0", "blk.2.attn_q.weight": "Q8_0"}


def test_types_that_cannot_be_encoded_are_refused() -> None:
    model = model_of("llama", 1, 4, 4)
    with pytest.raises(InputError, match=r"^m\.gguf: blk\.0\.attn_q\.weight: Q2_K is of no use without importance"):
        check_choices(choose_types(model, find_recipe("Q2_K_S"), Options(pure=True)), "m.gguf")
    check_choices(choose_types(model, find_recipe("Q2_K"), Options(pure=True)), "m.gguf")
    check_choices(choose_types(model, find_recipe("Q2_K_S"), has_importance=True), "m.gguf", has_importance=True)


@pytest.mark.parametrize("key", ["block_count", "expert_count", "attention.head_count", "attention.head_count_kv"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 2**40, True, "8"])
def test_invalid_counts_are_refused(key: str, value: Any) -> None:
    kinds = {float: ValueType.FLOAT64, int: ValueType.INT64, bool: ValueType.BOOL, str: ValueType.STRING}
    metadata = {"general.architecture": string("llama"), f"llama.{key}": Value(kinds[type(value)], value)}
    with pytest.raises(InputError, match=f"llama.{key}: found .*, wanted an integer from 0"):
        choose_types(Model(metadata, TIED), find_recipe("Q4_K_M"))
