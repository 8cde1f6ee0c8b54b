"""The choice of the instruction set that all native code of this process uses."""

import os
from functools import cache

from lltool.gguf.errors import InputError
from lltool.quant import _native


@cache
def chosen() -> str:
    """The instruction set that LLTOOL_ISA names, or else the best one that this processor runs.

    Raises InputError if LLTOOL_ISA names one that the processor does not run.
    """
    available: list[str] = _native.available_isas()
    name = os.environ.get("LLTOOL_ISA")
    if not name:
        return available[0]
    if name not in available:
        raise InputError(f"LLTOOL_ISA={name}: this machine runs {', '.join(available)}; unset it or name one of them")
    return name


def apply() -> None:
    """Makes the kernels of `quant` use the chosen instruction set."""
    _native.select_isa(chosen())
