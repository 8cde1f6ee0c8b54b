"""Plans, which are made before any weight is read."""

from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Bytes, Model, Tensor
from lltool.gguf.writer import Output, _lay_out, write_gguf
from lltool.quant.choose import Options
from lltool.quant.plan import Request, estimate_memory, estimate_seconds, plan_quantization, window_weights


def never(start: int, stop: int) -> Bytes:
    raise AssertionError("a weight was read")


def write_llama_shape(path: Path, layers: int, width: int, hidden: int) -> None:
    """A file with the first LLaMA's header and a hole as long as its F16 weights."""
    square, wide = (width, width), (hidden, width)
    parts = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    parts |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": (width, hidden)}
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (32000, width), "output": (32000, width)}
    shapes |= {f"blk.{block}.{part}": shape for block in range(layers) for part, shape in parts.items()}
    norms = ["output_norm", *(f"blk.{block}.{part}_norm" for block in range(layers) for part in ("attn", "ffn"))]
    tensors = [Tensor(f"{name}.weight", GGMLType.F16, shape, never) for name, shape in shapes.items()]
    tensors += [Tensor(f"{name}.weight", GGMLType.F32, (width,), never) for name in norms]
    metadata = {"general.architecture": string("llama"), "llama.block_count": u32(layers)}
    [file] = _lay_out(Output(path, Model(metadata, tensors)))
    with path.open("wb") as output:
        output.write(file.header)
        output.truncate(file.size)


# The well-known table dates from the time when output.weight had the type of the other tensors, as with --pure.
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((32, 4096, 11008), (3.5, 3.9, 4.3, 4.7, 6.7)), ((40, 5120, 13824), (6.8, 7.6, 8.3, 9.1, 12.9))],
    ids=["7B", "13B"],
)
def test_sizes_of_llama(shape: tuple[int, int, int], sizes: tuple[float, ...], tmp_path: Path) -> None:
    write_llama_shape(tmp_path / "llama.gguf", *shape)
    with open_gguf(tmp_path / "llama.gguf") as file:
        types = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
        plans = [plan_quantization(file, type, Options(pure=True)) for type in types]
        assert tuple(round(plan.bytes / 2**30, 1) for plan in plans) == sizes
        assert [round(plan.bits_per_weight, 2) for plan in plans] == [4.5, 5.0, 5.5, 6.0, 8.5]
        mixed = plan_quantization(file, "Q4_K_M")
        assert round(mixed.bits_per_weight, 2) == {32: 4.84, 40: 4.83}[shape[0]]
        assert estimate_memory(plans) < 512 << 20
        assert estimate_seconds(plans[:1], threads=1) > 0


def test_the_buffer_bounds_the_window() -> None:
    assert window_weights(20 << 20) == 1 << 20
    assert window_weights(1 << 40) == 4 << 20  # larger windows are not faster


@pytest.fixture
def model(tmp_path: Path) -> Path:
    zeros = np.zeros((8, 512), np.uint8)
    tensors = [
        Tensor(f"blk.{block}.{part}.weight", GGMLType.F16, (8, 256), lambda a, b: zeros[: b - a])
        for block in range(2)
        for part in ("attn_q", "ffn_down")
    ]
    write_gguf(tmp_path / "m.gguf", Model({"general.architecture": string("llama")}, tensors))
    return tmp_path / "m.gguf"


def test_impossible_plans_are_refused(model: Path) -> None:
    with open_gguf(model) as file:
        named = Options(tensor_types=(("ffn_up", GGMLType.Q8_0),))
        with pytest.raises(InputError, match=r"--tensor-type ffn_up=Q8_0: no tensor's name matches"):
            plan_quantization(file, "Q4_0", named)
        with pytest.raises(InputError, match=r"m\.gguf: blk\.0\.attn_q\.weight: IQ2_XS is of no use without import"):
            plan_quantization(file, "IQ2_XS")
        with pytest.raises(InputError, match=r"m\.gguf: has no layer 2 to prune; it has 2"):
            plan_quantization(file, "Q4_0", request=Request(prune=(0, 2)))


def test_pruned_layers_are_renumbered_and_counted(model: Path) -> None:
    with open_gguf(model) as file:
        plan = plan_quantization(file, "Q4_0", request=Request(prune=(0,)))
        assert plan.names == {
            "blk.0.attn_q.weight": "blk.1.attn_q.weight",
            "blk.0.ffn_down.weight": "blk.1.ffn_down.weight",
        }
        assert plan.model.metadata["llama.block_count"] == u32(1)
