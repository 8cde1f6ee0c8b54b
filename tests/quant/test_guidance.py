"""Importance checked against a model: uses, warnings, and importance of another model."""

from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Tensor
from lltool.quant.choose import ChosenType
from lltool.quant.guidance import Guidance, read_guidance
from lltool.quant.importance import Importance, write_dat, write_importance

DENSE, EXPERTS, OTHER = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.0.attn_k.weight"
SHAPES = {DENSE: (2, 3), EXPERTS: (2, 4, 3), OTHER: (2, 3), "token_embd.weight": (5, 3)}


def importance(**changed: list[list[float]]) -> Importance:
    sums = {DENSE: [[2.0, 4, 6]], EXPERTS: [[3.0, 6, 9], [1, 1, 2]], OTHER: [[1.0, 1, 1]]}
    sums |= {f"blk.0.{part}.weight": values for part, values in changed.items()}
    arrays = {name: np.array(values, np.float32) for name, values in sums.items() if values}
    counts = {name: np.full(len(values), 2, np.float32) for name, values in arrays.items()}
    return Importance(arrays, counts, 1, 2)


def tensor(name: str) -> Tensor:
    return Tensor(name, GGMLType.F32, SHAPES[name], lambda a, b: np.zeros((b - a, 12), np.uint8))


def check(found: Importance, type: GGMLType = GGMLType.Q8_0, needs_importance: bool = False) -> list[str]:
    choices = [ChosenType(tensor(name), type, type, needs_importance) for name in SHAPES]
    return Guidance(Path("i.gguf"), found).check(choices, {name: name for name in SHAPES}, set(SHAPES))


def test_columns_of_experts() -> None:
    guidance = Guidance(Path("i.gguf"), importance())
    np.testing.assert_array_equal(guidance.of(tensor(DENSE), DENSE), [[1, 2, 3]])
    np.testing.assert_array_equal(guidance.of(tensor(EXPERTS), EXPERTS), [[1.5, 3, 4.5], [0.5, 0.5, 1]])
    assert guidance.of(tensor("token_embd.weight"), "token_embd.weight") is None


def test_a_dat_file_guides_experts_too(tmp_path: Path) -> None:
    write_dat(tmp_path / "i.dat", importance())
    found = read_guidance(tmp_path / "i.dat").of(tensor(EXPERTS), EXPERTS)
    np.testing.assert_array_equal(found, [[1.5, 3, 4.5], [0.5, 0.5, 1]])


def test_missing_unseen_and_zero_entries_are_named() -> None:
    assert check(importance()) == []
    found = importance(attn_q=[[0.0, 0, 0]], attn_k=[])
    found.counts[EXPERTS][1] = 0
    assert check(found) == [
        f"i.gguf: has nothing for these tensors, so all their columns count the same: {OTHER}",
        f"i.gguf: these saw no token, so all their columns count the same: {EXPERTS}, expert 1",
        f"i.gguf: is all zero for these tensors: {DENSE}",
    ]
    assert check(found, GGMLType.F16) == []  # F16 uses no importance


def test_importance_of_another_model_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^i\.gguf: blk\.0\.attn_q\.weight has 2 columns, the model's has 3; it belongs to another"
    ):
        check(importance(attn_q=[[1.0, 2]]))
    with pytest.raises(
        InputError, match=r"^i\.gguf: has importance of blk\.0\.ffn_x\.weight, which the model does not have"
    ):
        check(importance(ffn_x=[[1.0, 2]]))
    with pytest.raises(InputError, match=rf"^i\.gguf: has no importance of {OTHER}, and IQ1_S is of no use without it"):
        check(importance(attn_k=[]), GGMLType.IQ1_S, needs_importance=True)


def test_an_empty_selection_is_refused(tmp_path: Path) -> None:
    write_importance(tmp_path / "i.gguf", importance())
    assert list(read_guidance(tmp_path / "i.gguf", exclude=["attn"]).importance.sums) == [EXPERTS]
    with pytest.raises(InputError, match=r"i\.gguf: no entry is left by --include-weights and --exclude-weights"):
        read_guidance(tmp_path / "i.gguf", include=["none"])
