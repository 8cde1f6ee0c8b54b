import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Tensor
from lltool.quant.recipes import Options, choose_types, find_recipe


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name, GGMLType.F16, shape, lambda start, stop: np.zeros((stop - start, 2 * shape[-1]), np.uint8))


TIED = [
    tensor("token_embd.weight", 512, 256),
    tensor("blk.0.ffn_down.weight", 256, 512),
    tensor("output_norm.weight", 256),
]
UNTIED = [*TIED, tensor("output.weight", 512, 256)]


def types(tensors: list[Tensor], recipe: str, options: Options | None = None) -> list[str]:
    return [choice.type.name for choice in choose_types(tensors, find_recipe(recipe), options or Options())]


def test_output_gets_more_bits_and_the_embedding_does_where_it_is_the_output() -> None:
    assert types(TIED, "Q4_0") == ["Q6_K", "Q4_0", "F16"]
    assert types(UNTIED, "Q4_0") == ["Q4_0", "Q4_0", "F16", "Q6_K"]
    assert types(UNTIED, "Q8_0") == ["Q8_0", "Q8_0", "F16", "Q8_0"]


def test_options_come_before_the_recipe() -> None:
    assert types(UNTIED, "Q4_0", Options(pure=True)) == ["Q4_0", "Q4_0", "F16", "Q4_0"]
    assert types(UNTIED, "Q4_0", Options(leave_output_tensor=True)) == ["Q4_0", "Q4_0", "F16", "F16"]
    chosen = Options(pure=True, output_tensor_type=GGMLType.Q8_0, token_embedding_type=GGMLType.Q5_1)
    assert types(UNTIED, "Q4_0", chosen) == ["Q5_1", "Q4_0", "F16", "Q8_0"]
    assert types(TIED, "Q4_0", Options(output_tensor_type=GGMLType.Q8_0)) == ["Q8_0", "Q4_0", "F16"]


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


@pytest.mark.parametrize(
    ("recipe", "columns", "expected"),
    [("Q6_K", 576, "Q8_0"), ("Q6_K", 100, "F16"), ("Q4_0", 48, "F16"), ("BF16", 7, "BF16")],
)
def test_shapes_that_do_not_fit_fall_back(recipe: str, columns: int, expected: str) -> None:
    [choice] = choose_types([tensor("blk.0.attn_q.weight", 8, columns)], find_recipe(recipe))
    assert (choice.type.name, choice.wanted.name) == (expected, recipe)


def test_recipes_are_found_by_name_and_number() -> None:
    assert find_recipe("q8_0") is find_recipe("7") is find_recipe("Q8_0")
    assert find_recipe("Q8_0").file_type == FileType.Q8_0
    with pytest.raises(InputError, match="'Q9_9' is not one of F32, F16"):
        find_recipe("Q9_9")
