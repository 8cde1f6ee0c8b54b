import numpy as np
import pytest

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Model, Tensor
from lltool.quant import retype as module
from lltool.quant.codec import BadWeights, encode
from lltool.quant.retype import retype

ROWS = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)


def f32_tensor(rows: np.ndarray) -> Tensor:
    data = rows.view(np.uint8)
    return Tensor("blk.0.attn_q.weight", GGMLType.F32, rows.shape, lambda start, stop: data[start:stop])


def test_rows_are_encoded_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 7 * 96)  # several windows a read
    [tensor] = retype(Model({}, [f32_tensor(ROWS)]), lambda _: GGMLType.Q5_0).tensors
    assert (tensor.type, tensor.shape, tensor.nbytes) == (GGMLType.Q5_0, (50, 96), 50 * 66)
    np.testing.assert_array_equal(tensor.read(3, 41), encode(ROWS[3:41], GGMLType.Q5_0))


def test_a_tensor_of_the_type_already_passes_untouched() -> None:
    tensor = f32_tensor(ROWS)
    assert retype(Model({}, [tensor]), lambda _: GGMLType.F32).tensors[0] is tensor


def test_bad_weights_name_tensor_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 7 * 96)
    rows = ROWS.copy()
    rows[23, 5] = np.nan
    [tensor] = retype(Model({}, [f32_tensor(rows)]), lambda _: GGMLType.Q8_0).tensors
    with pytest.raises(BadWeights, match=r"blk\.0\.attn_q\.weight: row 23 holds NaN or infinity"):
        tensor.read(20, 50)
