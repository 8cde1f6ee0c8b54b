"""Makes hqq.safetensors: weights as the hqq library stores them, and as it dequantizes them.

    python make_hqq.py

Made with hqq 0.2.8 on torch 2.13 (CPU).
"""

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from safetensors.torch import save_file

CASES = {
    "8-along": (8, 32, 1, torch.float16),
    "8-across": (8, 16, 0, torch.float32),
    "4-along": (4, 64, 1, torch.bfloat16),
    "4-across": (4, 32, 0, torch.float16),
    "4-over-rows": (4, 80, 1, torch.float32),
    "3-along": (3, 40, 1, torch.float16),
    "3-across": (3, 32, 0, torch.float32),
    "2-along": (2, 40, 1, torch.float16),
    "2-across": (2, 32, 0, torch.float32),
    "1-along": (1, 40, 1, torch.float32),
    "1-across": (1, 24, 0, torch.float16),
}

torch.manual_seed(5)
made: dict[str, torch.Tensor] = {}
for case, (bits, group, axis, type) in CASES.items():
    linear = torch.nn.Linear(40, 48, bias=False)
    settings = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
    quantized = HQQLinear(linear, settings, compute_dtype=type, device="cpu", del_orig=False)
    made |= {f"{case}.{name}": part.contiguous() for name, part in quantized.state_dict().items()}
    quantized.meta |= {name: quantized.meta[name].float() for name in ("scale", "zero")}
    quantized.meta["compute_dtype"] = torch.float32  # what the library rounds to is a matter of its kernels
    made[f"{case}.expected"] = quantized.dequantize()
save_file(made, "hqq.safetensors")
