from dataclasses import replace

import numpy as np
import pytest

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Model, Tensor
from lltool.quant import retype as module
from lltool.quant.codec import BadWeights, decode, encode
from lltool.quant.retype import Decoder, ErrorSum, retype, retype_tensor

ROWS = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)


def f32_tensor(rows: np.ndarray) -> Tensor:
    data = rows.view(np.uint8)
    return Tensor("blk.0.attn_q.weight", GGMLType.F32, rows.shape, lambda start, stop: data[start:stop])


def test_rows_are_encoded_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 7 * 96)  # several windows per read
    [tensor] = retype(Model({}, [f32_tensor(ROWS)]), lambda _: GGMLType.Q5_0).tensors
    assert (tensor.type, tensor.shape, tensor.nbytes) == (GGMLType.Q5_0, (50, 96), 50 * 66)
    np.testing.assert_array_equal(tensor.read(3, 41), encode(ROWS[3:41], GGMLType.Q5_0))


def test_a_tensor_that_has_the_type_passes_unchanged() -> None:
    tensor = f32_tensor(ROWS)
    assert retype(Model({}, [tensor]), lambda _: GGMLType.F32).tensors[0] is tensor


def test_bad_weights_name_tensor_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 7 * 96)
    rows = ROWS.copy()
    rows[23, 5] = np.nan
    [tensor] = retype(Model({}, [f32_tensor(rows)]), lambda _: GGMLType.Q8_0).tensors
    with pytest.raises(BadWeights, match=r"blk\.0\.attn_q\.weight: row 23 holds NaN or infinity"):
        tensor.read(20, 50)


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_each_expert_has_its_own_importance(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", window * 96)
    tensor = replace(f32_tensor(ROWS[:30]), shape=(3, 10, 96))
    importance = np.random.default_rng(1).uniform(0.1, 9, (3, 96)).astype(np.float32)
    guided = retype_tensor(tensor, GGMLType.Q4_0, importance=importance)
    expected = [encode(ROWS[10 * i : 10 * i + 10], GGMLType.Q4_0, importance[i]) for i in range(3)]
    np.testing.assert_array_equal(guided.data(), np.concatenate(expected))
    np.testing.assert_array_equal(guided.read(8, 23), np.concatenate(expected)[8:23])
    assert (expected[0] != encode(ROWS[:10], GGMLType.Q4_0)).any()  # importance makes a difference


def test_outputs_that_share_a_decoder_decode_once() -> None:
    asked: list[tuple[int, int]] = []
    plain = f32_tensor(ROWS)

    def read(start: int, stop: int) -> Bytes:
        asked.append((start, stop))
        return plain.read(start, stop)

    tensor, decoder = replace(plain, read=read), Decoder()
    outputs = [retype_tensor(tensor, type, decoder=decoder) for type in (GGMLType.Q8_0, GGMLType.Q5_1, GGMLType.F16)]
    for start, stop in ((0, 20), (20, 50)):
        for output in outputs:
            np.testing.assert_array_equal(output.read(start, stop), encode(ROWS[start:stop], output.type))
    assert asked == [(0, 20), (20, 50)]


@pytest.mark.parametrize("importance", [None, np.linspace(0, 2, 96, dtype=np.float32)[None]])
def test_errors_are_summed(importance: np.ndarray | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", 7 * 96)
    error = ErrorSum()
    assert error.relative == 0
    retyped = retype_tensor(f32_tensor(ROWS), GGMLType.Q4_0, importance=importance, error=error)
    weights, found = ROWS.astype(np.float64), decode(retyped.data(), GGMLType.Q4_0).astype(np.float64)
    factor = 1 if importance is None else importance
    expected = (factor * (found - weights) ** 2).sum() / (factor * weights**2).sum()
    assert error.relative == pytest.approx(expected, rel=1e-5)  # squares are summed in float32
