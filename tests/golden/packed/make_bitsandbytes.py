"""Makes bitsandbytes.safetensors: matrices quantized and dequantized by bitsandbytes (0.50.2) on a CPU.

    pip install bitsandbytes && python tests/golden/packed/make_bitsandbytes.py

The package has 43 MB of GPU code, so the tests read this file instead. `CASE.X` are the parts of a weight as
transformers stores them, and `CASE.expected` is what the library dequantizes them to.
"""

from pathlib import Path

import bitsandbytes.functional as library
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
parts: dict[str, torch.Tensor] = {}
# Rows of 40 end within a block; the nested scales of 258 blocks have two scales of their own.
for case, kind, block, nested, shape in (
    ("nf4", "nf4", 64, False, (24, 40)),
    ("fp4", "fp4", 64, False, (24, 40)),
    ("nf4-nested", "nf4", 32, True, (86, 96)),
    ("fp4-nested", "fp4", 64, True, (24, 40)),
):
    codes, state = library.quantize_4bit(
        torch.randn(shape), blocksize=block, quant_type=kind, compress_statistics=nested
    )
    parts[f"{case}.weight"] = codes
    parts |= {f"{case}.weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    parts[f"{case}.expected"] = library.dequantize_4bit(codes, state)
codes, scales, _ = library.int8_vectorwise_quant(torch.randn(24, 40).half())
parts["int8.weight"], parts["int8.SCB"] = codes, scales
parts["int8.weight_format"] = torch.zeros((), dtype=torch.uint8)
parts["int8.expected"] = library.int8_vectorwise_dequant(codes, scales)
save_file(
    {name: part.contiguous().clone() for name, part in parts.items()},
    Path(__file__).with_name("bitsandbytes.safetensors"),
)
