"""The picture of errors: a row for each kind of tensor, a column for each layer, whatever is missing."""

from itertools import product
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.eval.selection.quantization_errors import TensorError, plot_errors
from tests.eval.drawn_texts import misplaced_texts


def made(part: str, layer: int | None, error: float, type: str = "Q4_0") -> TensorError:
    return TensorError("m.gguf", part if layer is None else f"blk.{layer}.{part}", layer, part, type, 9, 9, error)


def cells_of(figure: Any) -> Any:
    (image,) = figure.axes[0].images
    return np.ma.filled(image.get_array(), nan)


def test_layers_are_columns_and_kinds_of_tensors_rows(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made("token_embd", None, 1e-7, "Q8_0"), made("attn_v", 0, 0.002), made("attn_v", 2, 0.004, "Q6_K")]
    rows += [made("ffn_up", layer, error) for layer, error in ((0, nan), (1, 0.0), (2, 0.008))]
    plot_errors(rows, "Q4_0", tmp_path / "x.png")
    axis, bar = figures[0].axes
    assert np.array_equal(cells_of(figures[0]), [[1e-7] * 3, [0.002, nan, 0.004], [nan, nan, 0.008]], equal_nan=True)
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["token_embd  Q8_0", "attn_v  Q4_0 Q6_K", "ffn_up  Q4_0"]
    assert (axis.get_xlabel(), bar.get_xlabel()) == ("layer", "relative squared error")
    assert axis.get_xlim() == (-0.5, 2.5)
    assert [text.get_text() for text in axis.texts] == ["1e-07", "0.003", "nan"]
    assert axis.images[0].get_clim() == pytest.approx((0.98 * 0.002, 1.02 * 0.008))  # of the layers alone
    assert figures[0].get_suptitle() == "Q4_0: error of each tensor"
    assert misplaced_texts(figures[0]) == []


@pytest.mark.parametrize(
    "rows",
    [
        [made("output", None, 0.001)],
        [made("attn_v", 0, 0.0)],
        [made("attn_v", 0, nan)],
        [made(f"a_kind_of_tensor_{kind}", layer, 0.007 + kind / 1e4) for kind, layer in product(range(30), range(126))],
        [made(f"attn_with_a_name_as_long_as_none_{kind}", 0, 10.0**-kind) for kind in range(9)],
    ],
    ids=["one outside", "exact", "no number", "30 kinds", "9 decades"],
)
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_what_can_come_is_drawn(tmp_path: Path, figures: list[Any], rows: list[TensorError], suffix: str) -> None:
    first, second = (plot_errors(rows, "Q4_0", tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first == second
    assert len(figures[0].axes[0].get_yticklabels()) == len({row.part for row in rows})
    assert misplaced_texts(figures[0]) == []
