"""Changes of tensors: values against numpy, the way back, reading in parts, and bounded memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.families.changes import (
    ADD_ONE,
    NEGATIVE_EXP,
    Chain,
    Change,
    Each,
    Fold,
    Gather,
    Inverse,
    Permute,
    Split,
    Squeeze,
    Stack,
    Transpose,
    concatenate,
)
from lltool.quant.convert.families.rows import Row, expand, layers_before, layers_from, layers_listed
from lltool.quant.convert.families.sizes import Sizes

SIZES = Sizes(
    {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "hidden_size": 5,
        "intermediate_size": 7,
        "experts": 3,
        "rotated": 2,
        "rank": 5,
        "nope": 3,
        "value": 2,
    }
)
Arrays = list[NDArray[np.float32]]


def tensor_of(values: NDArray[np.float32], name: str = "t") -> Tensor:
    data = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.shape[-1] * 4)
    return Tensor(name, GGMLType.F32, values.shape, lambda start, stop: data[start:stop])


def values_of(tensor: Tensor, step: int) -> NDArray[np.float32]:
    """The values, read `step` rows at a time."""
    parts = [tensor.read(start, min(start + step, tensor.rows)) for start in range(0, tensor.rows, step)]
    assert all(part.shape[1] == tensor.row_bytes for part in parts)
    assert tensor.read(0, 0).shape[0] == 0
    return np.ascontiguousarray(np.concatenate(parts)).view(np.float32).reshape(tensor.shape)


def random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape).astype(np.float32)


def grouped(x: NDArray[np.float32]) -> Arrays:
    """Queries, keys and values of (6 + 2 * 2) * 4 rows that are fused by key head, as Falcon fuses them."""
    by_group = x.reshape(2, 5, 4, *x.shape[1:])
    parts = by_group[:, :3], by_group[:, 3], by_group[:, 4]
    return [np.concatenate(list(part.reshape(2, -1, *x.shape[1:]))) for part in parts]


def latent(x: NDArray[np.float32]) -> Arrays:
    """DeepSeek's up-projection of 6 heads: keys transposed for each head, and values."""
    heads = x.reshape(6, 5, 5)
    return [heads[:, :3].transpose(0, 2, 1), heads[:, 3:]]


BY_GROUP = Split(("3 * head_dim", "head_dim", "head_dim"), "num_key_value_heads")
BY_HEAD = Split(("nope", "value"), "num_attention_heads")

CASES: dict[str, tuple[Change, Arrays, Callable[..., Arrays]]] = {
    "split": (Split(("queries", "keys", "keys")), [random(40, 5)], lambda x: [x[:24], x[24:32], x[32:]]),
    "split a bias": (Split(("queries", "keys", "keys")), [random(40)], lambda x: [x[:24], x[24:32], x[32:]]),
    "split by groups": (BY_GROUP, [random(40, 5)], grouped),
    "split a bias by groups": (BY_GROUP, [random(40)], grouped),
    "gather": (Gather(BY_GROUP), [random(40, 5)], lambda x: [np.concatenate(grouped(x))]),
    "gather a bias": (Gather(BY_GROUP), [random(40)], lambda x: [np.concatenate(grouped(x))]),
    "stack": (Stack("experts"), [random(7, 5), random(7, 5) + 1, random(7, 5) + 2], lambda *x: [np.stack(x)]),
    "stack of biases": (Stack("experts"), [random(7), random(7) + 1, random(7) + 2], lambda *x: [np.stack(x)]),
    "permute pairs": (
        Permute("num_key_value_heads"),
        [random(8, 5)],
        lambda x: [x[[0, 2, 1, 3, 4, 6, 5, 7]]],
    ),
    "permute the rotated part": (
        Permute("num_key_value_heads", "4"),
        [random(12, 5)],
        lambda x: [x[[0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]]],
    ),
    "transpose": (Transpose(), [random(7, 5)], lambda x: [x.T]),
    "transpose a stack": (Transpose(), [random(3, 7, 5)], lambda x: [x.transpose(0, 2, 1)]),
    "squeeze": (Squeeze(1), [random(7, 1, 5)], lambda x: [x[:, 0]]),
    "plus one": (ADD_ONE, [random(7)], lambda x: [1 + x]),
    "minus exp": (NEGATIVE_EXP, [random(7, 5)], lambda x: [-np.exp(x)]),
    "keys transposed, values": (
        Chain(
            BY_HEAD,
            Each((Chain(Fold("num_attention_heads"), Transpose()), Fold("num_attention_heads"))),
        ),
        [random(30, 5)],
        latent,
    ),
    "stacked gate and up": (
        Chain(Inverse(Fold("experts")), Split(("hidden", "hidden"), "experts"), Each((Fold("experts"),) * 2)),
        [random(3, 14, 5)],
        lambda x: [x[:, :7], x[:, 7:]],
    ),
}


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
@pytest.mark.parametrize("case", CASES)
def test_values_and_the_way_back(case: str, step: int) -> None:
    change, sources, definition = CASES[case]
    results = change.to_gguf([tensor_of(x) for x in sources], SIZES)
    wanted = definition(*sources)
    assert [result.shape for result in results] == [x.shape for x in wanted]
    for result, x in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(values_of(result, step), x)
    back = change.to_checkpoint([tensor_of(np.ascontiguousarray(x)) for x in wanted], SIZES)
    assert [tensor.shape for tensor in back] == [x.shape for x in sources]
    for tensor, x in zip(back, sources, strict=True):
        np.testing.assert_allclose(values_of(tensor, step), x, rtol=2e-6, atol=2e-7)


# Vectors are read whole, and transpositions hold a window of a fixed size.
@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][1][0].ndim > 1 and "trans" not in case])
def test_no_more_is_read_at_a_time_than_asked_for(case: str) -> None:
    """A reader that takes a few rows makes a change hold a few rows, though the rows are scattered in the source."""
    change, sources, _ = CASES[case]
    most = 0

    def watch(tensor: Tensor) -> Tensor:
        def read(start: int, stop: int) -> Bytes:
            nonlocal most
            most = max(most, stop - start)
            return tensor.read(start, stop)

        return replace(tensor, read=read)

    for result in change.to_gguf([watch(tensor_of(x)) for x in sources], SIZES):
        values_of(result, 2)
    assert 1 <= most <= 8


def test_transposition_reads_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lltool.quant.convert.families.changes._WINDOW", 40)  # two rows of five values
    x = random(2, 7, 5)
    spans: list[int] = []

    def read(start: int, stop: int) -> Bytes:
        spans.append(stop - start)
        return tensor_of(x).read(start, stop)

    (result,) = Transpose().to_gguf([replace(tensor_of(x), read=read)], SIZES)
    np.testing.assert_array_equal(values_of(result, 3), x.transpose(0, 2, 1))
    assert set(spans) <= {1, 2}


@pytest.mark.parametrize(
    ("change", "shapes", "message"),
    [
        (Split(("queries", "keys")), [(40, 5)], "40 rows, wanted 24 and 8"),
        (Permute("num_attention_heads"), [(8, 5)], "8 rows, wanted a multiple of 2 for each of 6 heads"),
        (Squeeze(1), [(7, 2, 5)], r"shape \(7, 2, 5\), wanted length 1 of axis 1"),
        (Stack("experts"), [(7, 5), (6, 5)], r"shape \(6, 5\), but t has \(7, 5\)"),
        (Fold("experts"), [(7, 5)], r"shape \(7, 5\), wanted a multiple of 3 rows"),
        (Transpose(), [(7,)], r"shape \(7,\), wanted a matrix to transpose"),
    ],
)
def test_shapes_that_do_not_allow_a_change(change: Change, shapes: Sequence[tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        change.to_gguf([tensor_of(random(*shape)) for shape in shapes], SIZES)


def test_tensors_of_two_types_do_not_become_one() -> None:
    half = replace(tensor_of(random(7, 5), "b"), type=GGMLType.F16)
    with pytest.raises(InputError, match="b: F16, but a is F32; they become one tensor"):
        concatenate([tensor_of(random(7, 5), "a"), half])


def test_rows_of_layers_and_experts() -> None:
    rows = (
        Row("token_embd.weight", "embed", ("vocab", "width")),
        Row("blk.{}.ffn_up.weight", "layers.{}.up", ("hidden", "width"), layers=layers_before("dense")),
        Row(
            "blk.{}.ffn_up_exps.weight",
            "layers.{}.experts.{expert}.up",
            ("hidden", "width"),
            Stack("experts"),
            layers=layers_from("dense"),
            experts="experts",
        ),
        Row("blk.{}.sink.weight", "layers.{}.sink", ("head",), layers=layers_listed("kinds", "a")),
        Row("output.weight", "head", ("vocab", "width")),
    )
    config = {"num_hidden_layers": 3, "dense": 1, "experts": 2, "kinds": ["b", "a", "b"]}
    found = [(row.targets[0], row.sources(Sizes(config))) for row in expand(rows, config)]
    assert found == [
        ("token_embd.weight", ["embed"]),
        ("blk.0.ffn_up.weight", ["layers.0.up"]),
        ("blk.1.ffn_up_exps.weight", ["layers.1.experts.0.up", "layers.1.experts.1.up"]),
        ("blk.1.sink.weight", ["layers.1.sink"]),
        ("blk.2.ffn_up_exps.weight", ["layers.2.experts.0.up", "layers.2.experts.1.up"]),
        ("output.weight", ["head"]),
    ]
