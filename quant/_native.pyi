from typing import Annotated

import numpy
from numpy.typing import NDArray


def available_isas() -> list[str]:
    """Instruction sets this processor can run, best first."""

def select_isa(name: str) -> None: ...

def codebook(name: str) -> NDArray[numpy.uint8]:
    """
    The entries of an IQ codebook, uint8 (entries, weights); IQ1 as eighths above -1.
    """

def decode(type: int, blocks: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], block: int, block_bytes: int, threads: int) -> None: ...

def can_encode(type: int) -> bool: ...

def needs_importance(type: int) -> bool:
    """Whether `encode` has no way without importance."""

def encode(type: int, values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], importance: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, out: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')], block: int, block_bytes: int, threads: int) -> tuple[int, str] | None:
    """
    None, or the first row that cannot be encoded and why: 'not finite' or 'too large'.
    """
