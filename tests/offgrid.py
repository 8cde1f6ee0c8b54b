"""Makes the off-grid twin of a Llama: the same function, with weights that lie on no quantization grid.

A model that can be had may have been quantized already, and quantizing it again to that type looks too good. Here each
norm's gain moves into the matrices that read it, and pairs of channels (value and output, up and down) are scaled by
random factors that cancel: in exact arithmetic nothing changes, and the weights are as good as never quantized.

    python -m tests.offgrid smollm2-q4_1.gguf offgrid-F16.gguf
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant.codec import decode

Matrix = NDArray[np.float64]

READERS = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}
MOSTLY_F16 = 1  # a file type


def write_twin(source: Path, target: Path, seed: int = 135) -> None:
    """Of a model with architecture llama, to matrices in F16 and vectors in F32."""
    with open_gguf(source) as file:
        keys = {name: value for name, value in file.metadata.items() if not name.startswith("lltool.")}
        weights = {
            tensor.name: decode(tensor.data(), tensor.type).astype(np.float64).reshape(tensor.shape)
            for tensor in file.tensors
        }
        heads, kv_heads = (keys[f"llama.attention.head_count{kind}"].data for kind in ("", "_kv"))
        random = np.random.default_rng(seed)
        for layer in range(keys["llama.block_count"].data):
            block = {name.split(".")[2]: w for name, w in weights.items() if name.startswith(f"blk.{layer}.")}
            _move_off_grid(block, heads, kv_heads, random)
        keys["general.file_type"] = u32(MOSTLY_F16)
        write_gguf(target, Model(keys, [_tensor(name, values) for name, values in weights.items()]))


def _move_off_grid(block: dict[str, Matrix], heads: int, kv_heads: int, random: np.random.Generator) -> None:
    """Changes the matrices of a layer, by their short names, in place."""
    for norm, readers in READERS.items():
        for reader in readers:
            block[reader] *= block[norm]
        block[norm][:] = 1
    values, output = block["attn_v"], block["attn_output"]
    scale = np.exp(random.uniform(-0.5, 0.5, len(values)))
    values *= scale[:, None]
    output /= np.repeat(scale.reshape(kv_heads, -1), heads // kv_heads, axis=0).reshape(-1)
    scale = np.exp(random.uniform(-0.5, 0.5, len(block["ffn_up"])))
    block["ffn_up"] *= scale[:, None]
    block["ffn_down"] /= scale


def _tensor(name: str, values: Matrix) -> Tensor:
    kind, type = (np.float16, GGMLType.F16) if values.ndim > 1 else (np.float32, GGMLType.F32)
    rows = np.ascontiguousarray(values, kind).reshape(-1, values.shape[-1]).view(np.uint8)
    return Tensor(name, type, values.shape, lambda start, stop: rows[start:stop])


if __name__ == "__main__":
    write_twin(*map(Path, sys.argv[1:]))
