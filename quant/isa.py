"""The instruction set that all native code of this process uses."""

import os
from functools import cache

from lltool.gguf.errors import InputError
from lltool.quant import _native


@cache
def chosen() -> str:
    """What LLTOOL_ISA names, or the best this processor runs.

    Raises InputError when it names none of `available_isas`.
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
