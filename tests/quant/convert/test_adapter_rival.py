"""GGUF adapters in llama.cpp, and those of its converter in our engine: the same logits both ways."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.quant.convert.adapter_file import plan_adapter, write_adapter
from lltool.quant.convert.conversion import convert
from lltool.quant.convert.lora import open_adapter
from tests.libllama import MISSING, find_library, logits_of
from tests.quant.convert.test_adapter_file import ALL, EXPERTS, IDS, make_adapter, our_logits
from tests.tiny_checkpoints import make_checkpoint

pytestmark = [pytest.mark.rival, pytest.mark.slow]

TOLERANCE = 1e-4
OF_GELU = 5e-3  # which llama.cpp looks up in a table with half precision
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "all linears": ("llama", {**ALL, "r": 16}),
    "rank-stabilised, with patterns": (
        "llama",
        {**ALL, "r": 5, "use_rslora": True, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 7}},
    ),
    "embedding and output": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "gathered heads": ("gptneox", ALL),
    "experts": ("qwen3moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "r": 3}),
}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return find_library() or pytest.skip(MISSING)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = make_checkpoint(family, tmp_path_factory.mktemp("rival") / family)
            convert(made[family], made[family].with_suffix(".gguf"), "f32")
        return made[family]

    return find


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_same(
    case: str, library: ctypes.CDLL, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    family, settings = CASES[case]
    base = bases(family)
    model = base.with_suffix(".gguf")
    make_adapter(base, tmp_path / "adapter", **settings)
    adapter = write_adapter(plan_adapter(open_adapter(str(tmp_path / "adapter")), str(base)), tmp_path / "a.gguf")
    tolerance = OF_GELU if family == "gptneox" else TOLERANCE
    for scale in (1.0, -0.5):
        wanted = logits_of(library, model, IDS, [(adapter, scale)])
        assert wanted is not None
        assert np.abs(our_logits(model, [(adapter, scale)]) - wanted).max() < tolerance * wanted.std()


def test_an_adapter_of_llama_cpps_converter(library: ctypes.CDLL, bases: Callable[[str], Path], tmp_path: Path) -> None:
    if not (tree := os.environ.get("LLAMA_CPP_TREE")):
        pytest.skip("LLAMA_CPP_TREE names no source tree of llama.cpp")
    base = bases("llama")
    model = base.with_suffix(".gguf")
    make_adapter(base, tmp_path / "adapter", **ALL, r=8)
    out = tmp_path / "theirs.gguf"
    script = [sys.executable, str(Path(tree) / "convert_lora_to_gguf.py"), str(tmp_path / "adapter")]
    subprocess.run([*script, "--base", str(base), "--outfile", str(out)], check=True, capture_output=True)
    ours = write_adapter(plan_adapter(open_adapter(str(tmp_path / "adapter")), str(base)), tmp_path / "ours.gguf")
    np.testing.assert_array_equal(our_logits(model, [(out, 1.0)]), our_logits(model, [(ours, 1.0)]))
    wanted = logits_of(library, model, IDS, [(out, 1.0)])
    assert wanted is not None
    assert np.abs(our_logits(model, [(out, 1.0)]) - wanted).max() < TOLERANCE * wanted.std()
