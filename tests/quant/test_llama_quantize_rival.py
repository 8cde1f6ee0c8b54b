"""The types of every architecture's matrices under every recipe, beside those that llama-quantize chooses.

LLAMA_QUANTIZE names the program, of a version with --dry-run.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from lltool.gguf.errors import InputError
from lltool.gguf.reader import open_gguf
from lltool.quant.choose import choose_types
from lltool.quant.convert.conversion import convert
from lltool.quant.recipes import RECIPES
from tests.derived_checkpoints import DERIVED, make_with_original
from tests.tiny_checkpoints import FAMILIES

pytestmark = [pytest.mark.rival, pytest.mark.slow]

CASES = [family for family in (*FAMILIES, *DERIVED) if family != "gptj"]  # which llama.cpp does not have
_LITE = {"deepseek2": {"q_lora_rank": 24}}  # llama.cpp knows others by their number of layers
# Widths of 256 fill blocks of every type.
_SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}

_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) .*?type = +(\w+), size.*?(?:-> .*?\((\w+)\))?$")


@pytest.fixture(scope="module")
def program() -> str:
    return os.environ.get("LLAMA_QUANTIZE") or pytest.skip("LLAMA_QUANTIZE does not name llama.cpp's llama-quantize")


def types_of(program: str, path: Path, recipe: str) -> dict[str, str] | None:
    """The type of each tensor; None if the program wants importance data or does not know the recipe."""
    done = subprocess.run([program, "--dry-run", str(path), recipe], capture_output=True, text=True)
    if done.returncode:
        return None
    found = [_LINE.match(line) for line in (done.stdout + done.stderr).splitlines()]
    return {match[1]: (match[3] or match[2]).upper() for match in found if match}


def make_wide(family: str, folder: Path) -> Path:
    """The F32 file of a checkpoint with rows of 256 or, if it cannot have them, as it is."""
    for name, sizes in (("wide", _SIZES), ("plain", {})):
        try:
            make_with_original(family, folder / name, **sizes, **_LITE.get(family, {}))
            return convert(folder / name, folder / f"{name}.gguf", outtype="f32")
        except (AssertionError, AttributeError, InputError, RuntimeError, StrictDataclassError, TypeError, ValueError):
            if not sizes:
                raise
    raise AssertionError("a checkpoint was made or the error raised")


@pytest.mark.parametrize("family", CASES)
def test_types_are_those_of_llama_quantize(program: str, family: str, tmp_path: Path) -> None:
    path = make_wide(family, tmp_path)
    different, compared = {}, 0
    with open_gguf(path) as file:
        for name, recipe in RECIPES.items():
            theirs = types_of(program, path, name)
            if theirs is None:
                continue
            compared += 1
            ours = {choice.tensor.name: choice.type.name for choice in choose_types(file, recipe)}
            unequal = {
                tensor: (type, theirs.get(tensor)) for tensor, type in ours.items() if type != theirs.get(tensor)
            }
            if unequal:
                different[name] = dict(list(unequal.items())[:4])
    assert compared > 20
    assert different == {}
