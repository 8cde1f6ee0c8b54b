"""Checkpoints of TensorRT's model optimizer: FP8 with a scale for each tensor, and NVFP4."""

from collections.abc import Iterator

from lltool.quant.convert.packed import fp8
from lltool.quant.convert.packed.nvfp4 import grid_weight
from lltool.quant.convert.packed.parts import Parts, Settings, Unpacked


def unpack(parts: Parts, settings: Settings) -> Iterator[Unpacked]:
    """The float32 weights of all that are stored in 8-bit floats, or in four bits with `weight_scale_2`."""
    settings.choice("quant_algo", "fp8", "fp8", "nvfp4", "fp8_pb_wo", "mixed_precision")
    for name in list(parts.with_suffix(".weight_scale_2")):
        weight = f"{name}.weight"
        yield grid_weight(parts, weight, weight, f"{weight}_scale", f"{weight}_scale_2", divides=False)
    yield from fp8.unpack(parts, settings)
