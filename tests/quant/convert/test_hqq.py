"""HQQ's packing of weights, against the library's own dequantization."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lltool.gguf.errors import InputError
from lltool.quant.convert.checkpoint import open_checkpoint
from tests.quant.convert.test_packed import change


@pytest.mark.parametrize("way", ["along", "across"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_hqq(bits: int, way: str, golden_file: Callable[[str], Path], tmp_path: Path) -> None:
    check_hqq(f"{bits}-{way}", golden_file("packed/hqq.safetensors"), tmp_path)


def test_groups_of_hqq_that_cross_rows(golden_file: Callable[[str], Path], tmp_path: Path) -> None:
    check_hqq("4-over-rows", golden_file("packed/hqq.safetensors"), tmp_path)


def check_hqq(case: str, golden: Path, folder: Path) -> None:
    """Equal to the library's own dequantization in float32, which tests/golden/packed/make_hqq.py stored."""
    parts = {name: part for name, part in load_file(golden).items() if name.startswith(f"{case}.")}
    expected = parts.pop(f"{case}.expected").numpy()
    save_file(parts, folder / "model.safetensors")
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "hqq"}}')
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.files) == [f"{case}.weight"]
    tensor = checkpoint.tensor(f"{case}.weight")
    assert tensor.shape == expected.shape
    for start, stop in ((0, tensor.rows), (0, 1), (7, 20), (47, 48), (5, 5)):
        np.testing.assert_array_equal(tensor.read(start, stop).view(np.float32), expected[start:stop])


@pytest.mark.parametrize(
    ("part", "function", "message"),
    [
        ("packing", lambda t: t + 1, r"4-along\.packing: found '5cju`v9', wanted 8bit_u8"),
        ("scale", lambda t: t[:9].clone(), r"zero: shape \(30, 1\), wanted \(9, 1\)"),
        (
            "shape",
            lambda t: t + 1,
            r"codes \(15, 64\), scales \(30, 1\) and axis \[1\] do not give a weight of \(49, 41\)",
        ),
        ("quant_zero", lambda t: t + 1, r"4-along\.quant_zero: is set, and this version reads only plain scales"),
        ("zero", lambda t: t * torch.nan, r"4-along\.zero: row 0, column 0: found nan"),
    ],
)
def test_parts_of_hqq_that_do_not_fit(
    part: str,
    function: Callable[[torch.Tensor], Any],
    message: str,
    golden_file: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    golden = load_file(golden_file("packed/hqq.safetensors"))
    parts = {name: values for name, values in golden.items() if name.startswith("4-along.") and "expected" not in name}
    save_file(parts, tmp_path / "model.safetensors")
    change(tmp_path, f"4-along.{part}", function)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "hqq"}}')
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path).tensor("4-along.weight").data()
