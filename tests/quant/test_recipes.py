"""The built-in recipes and users' recipes."""

from pathlib import Path

import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.recipe_language import Rule, format_recipe, layers_hold
from lltool.quant.recipes import RECIPES, find_recipe, read_recipe


def test_recipes_are_found_by_name_alias_and_number() -> None:
    assert find_recipe("q8_0") is find_recipe("7") is find_recipe("Q8_0")
    assert find_recipe("Q8_0").file_type == FileType.Q8_0
    assert [find_recipe(name).name for name in ("q4_k", "Q5_K", "Q3_K", "0")] == ["Q4_K_M", "Q5_K_M", "Q3_K_M", "F32"]
    assert find_recipe("copy").base is None
    with pytest.raises(InputError, match=r"'Q9_9' is unknown; wanted one of F32, F16, .*, or a recipe's file"):
        find_recipe("Q9_9")


def test_every_file_type_that_llama_quantize_offers_has_its_number() -> None:
    numbered = {recipe.name: recipe.file_type for recipe in RECIPES.values() if recipe.name != "COPY"}
    assert numbered == {type.name: type for type in FileType if type.name != "NVFP4"}


def test_layers_of_a_model() -> None:
    def held(layers: str, count: int = 32) -> list[int]:
        return [index for index in range(count) if layers_hold(layers, index, index + 100, count)]

    assert held("first 2") == [0, 1]
    assert held("first 1/8") == [0, 1, 2, 3]
    assert held("first 1/8", 15) == [0]
    assert held("middle") == list(range(4, 28))
    assert held("more") == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert held("100-102, 107") == [0, 1, 2, 7]
    assert not layers_hold("0", 0, None, 32)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "COPY"])  # it has no base, as files must
def test_a_formatted_recipe_can_be_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "shown.toml"
    path.write_text(format_recipe(RECIPES[name]))
    found = read_recipe(path)
    assert (found.name, found.base, found.file_type, found.rules, found.needs_importance) == (
        name,
        RECIPES[name].base,
        RECIPES[name].file_type,
        RECIPES[name].rules,
        RECIPES[name].needs_importance,
    )


def test_a_users_recipe_extends_another(tmp_path: Path) -> None:
    path = tmp_path / "Better.TOML"
    path.write_text("""
        version = 1
        extends = "q4_k_m"
        rules = [
          { tensors = ["ffn_down", "blk.0.attn_q.weight"], layers = "first 1/4", type = "q6_k" },
          { match = 'sh"exp\\d', type = "base" },
          "output_of_experts",
        ]
    """)
    found, parent = find_recipe(str(path)), find_recipe("Q4_K_M")
    assert (found.name, found.base, found.file_type) == ("Better", GGMLType.Q4_K, FileType.Q4_K_M)
    assert found.rules == (
        *parent.rules,
        Rule(GGMLType.Q6_K, ("ffn_down", "blk.0.attn_q.weight"), layers="first 1/4"),
        Rule(None, match='sh"exp\\d'),
        Rule(GGMLType.Q5_K, ("attn_output",), experts=8),
    )
    (tmp_path / "again.toml").write_text(format_recipe(found))
    assert read_recipe(tmp_path / "again.toml").rules == found.rules


@pytest.mark.parametrize(
    ("base", "file_type"),
    [("Q5_1", FileType.Q5_1), ("Q4_K", FileType.Q4_K_S), ("IQ2_XS", FileType.IQ2_XS), ("IQ2_S", FileType.IQ2_M)],
)
def test_a_base_alone_gives_the_nearest_file_type(base: str, file_type: FileType, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f'version = 1\nbase = "{base}"')
    assert read_recipe(tmp_path / "r.toml").file_type == file_type


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = ", r"r\.toml: not a recipe in TOML: "),
        ('base = "Q4_K"', "has no version; begin with `version = 1`"),
        ('version = 2\nbase = "Q4_K"', "version is 2, wanted 1"),
        ("version = 1", "has no base; give base or extends"),
        ('version = 1\nbase = "Q4"', "base is 'Q4', wanted one of F32, F16, Q4_0"),
        ("version = 1\nbase = 4", "base is 4, wanted a text"),
        ('version = 1\nbase = "Q4_K"\nname = "a/b"', "name is 'a/b', wanted a name that a file can have"),
        ('version = 1\nbase = "I8"', "base is 'I8', wanted one of"),
        ('version = 1\nextends = "Q9"', "extends 'Q9', which is not one of F32"),
        ('version = 1\nextends = "COPY"', "has no base"),
        ('version = 1\nbase = "Q4_K"\nnumber = 33', "number is 33, wanted the number of a file type"),
        ('version = 1\nbase = "Q4_K"\ncolour = 1', "unknown key 'colour', wanted one of version, name"),
        ('version = 1\nbase = "Q4_K"\nrules = 1', "rules is 1, wanted a list"),
        ('version = 1\nbase = "Q4_K"\nrules = ["none"]', "rule 1 is 'none', wanted a table or one of output"),
        ('version = 1\nbase = "Q4_K"\nrules = [{}]', r"rule 1 is {}, wanted one like { tensors"),
        ('version = 1\nbase = "Q4_K"\nrules = [{type="base"}, {type="Q"}]', "rule 2: type is 'Q', wanted one of"),
        ('version = 1\nbase = "Q4_K"\nrules = [{type="Q6_K", on=1}]', "rule 1: unknown key 'on', wanted one of type"),
        ('version = 1\nbase = "Q4_K"\nrules = [{type="Q6_K", tensors="ffn"}]', "tensors is 'ffn', wanted output, "),
        ('version = 1\nbase = "Q4_K"\nrules = [{type="Q6_K", match="("}]', r"match is '\(', wanted a regular expr"),
        ('version = 1\nbase = "Q4_K"\nrules = [{type="Q6_K", layers="first 1/0"}]', "layers is 'first 1/0', wanted"),
        ('version = 1\nbase = "Q4_K"\nrules = [{type="Q6_K", min_gqa=true}]', "min_gqa is True, wanted a whole number"),
        ('version = 1\nbase = "Q4_K"\nrules = [{type="Q6_K", stacked=1}]', "stacked is 1, wanted true or false"),
    ],
)
def test_an_error_in_a_recipe_names_its_place(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_recipe(tmp_path / "r.toml")
