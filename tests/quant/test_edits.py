import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType, array, boolean, f32, string, u32
from lltool.gguf.source import Model, Tensor
from lltool.quant.edits import parse_override, prune_layers


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("llama.block_count=int:12", "llama.block_count", u32(12)),
        ("a=int:-3", "a", Value(ValueType.INT32, -3)),
        ("a.b=float:0.5", "a.b", f32(0.5)),
        ("a=bool:true", "a", boolean(True)),
        ("a=str:x=y:z", "a", string("x=y:z")),
        ("a=str:", "a", string("")),
    ],
)
def test_overrides(text: str, key: str, value: Value) -> None:
    assert parse_override(text) == (key, value)


@pytest.mark.parametrize(
    "text", ["", "a", "a=1", "a=int:", "a=int:x", "a=int:4294967296", "a=bool:1", "=int:1", "a=x:1"]
)
def test_invalid_overrides_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="wanted KEY=TYPE:VALUE"):
        parse_override(text)


def test_pruning_renumbers_tensors_and_cuts_arrays_with_a_value_per_layer() -> None:
    def tensor(name: str) -> Tensor:
        return Tensor(name, GGMLType.F32, (4,), lambda start, stop: np.zeros((stop - start, 16), np.uint8))

    names = ["token_embd.weight", *(f"blk.{i}.{part}.weight" for i in range(12) for part in ("a", "b"))]
    metadata = {
        "general.architecture": string("x"),
        "x.block_count": u32(12),
        "x.head_count_kv": array(ValueType.UINT32, np.arange(12, dtype=np.uint32)),
        "x.other": array(ValueType.UINT32, np.arange(3, dtype=np.uint32)),
    }
    model, before = prune_layers(Model(metadata, list(map(tensor, names))), (1, 10), "m.gguf")
    assert [t.name for t in model.tensors] == [
        "token_embd.weight",
        *(f"blk.{i}.{part}.weight" for i in range(10) for part in ("a", "b")),
    ]
    assert (before["blk.0.a.weight"], before["blk.1.b.weight"]) == ("blk.0.a.weight", "blk.2.b.weight")
    assert before["blk.9.a.weight"] == "blk.11.a.weight"
    assert model.metadata["x.block_count"] == u32(10)
    assert model.metadata["x.head_count_kv"].data.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert model.metadata["x.other"] == metadata["x.other"]
    with pytest.raises(InputError, match=r"m\.gguf: all 12 layers would be pruned"):
        prune_layers(Model(metadata, list(map(tensor, names))), range(12), "m.gguf")
