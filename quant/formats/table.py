"""All quantized formats by type."""

from lltool.quant.formats import fp4, iq, k_quants, legacy, ternary  # noqa: F401 - importing a module registers its formats
from lltool.quant.formats.base import FORMATS

__all__ = ["FORMATS"]
