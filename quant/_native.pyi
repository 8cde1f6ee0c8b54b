from typing import Annotated

import numpy
from numpy.typing import NDArray


def available_isas() -> list[str]:
    """The instruction sets that this processor can run, best first."""

def built_isas() -> list[str]:
    """The instruction sets that this module contains, best first."""

def select_isa(name: str) -> None: ...

def codebook(name: str) -> NDArray[numpy.uint8]:
    """
    The entries of an IQ codebook, uint8 (entries, weights); for IQ1, in eighths above -1.
    """

def layout(type: int) -> tuple[int, int] | None:
    """
    The weights and the bytes of a block, or None for a type that this module does not decode.
    """

def decode(type: int, blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], threads: int) -> None: ...

def coded_form(type: int) -> tuple[int, int, int, bool] | None:
    """
    Of a quantized type: the weights of a group, the code of 0, the largest code, and whether groups have a minimum.
    """

def planes(type: int, blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], fours: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')] | None, twos: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')] | None, ones: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')] | None, eights: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')] | None, table: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, scale: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], min: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')] | None, threads: int) -> None:
    """
    Splits the codes of rows into planes of 4, 2 and 1 bits, or whole bytes, and writes the groups' scales and minima.

    Of 32 codes, byte i of a plane of 4 bits has codes i and 16 + i; of 2 bits, codes i, 8 + i, 16 + i and 24 + i; of
    1 bit, codes 4 k + i. Lowest bits are in the widest plane. A `table` of codes stores their places in it instead.
    """

def can_encode(type: int) -> bool: ...

def needs_importance(type: int) -> bool:
    """Whether `encode` requires importance for this type."""

def encode(type: int, values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], importance: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, out: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')], threads: int) -> tuple[int, str] | None:
    """
    Returns None, or the first row that cannot be encoded and the reason: 'not finite' or 'too large'.
    """
