"""Attention that is biased by distance (ALiBi)."""

from lltool.gguf.architecture_keys import ArchitectureKeys


def read_slopes(keys: ArchitectureKeys, heads: int, default: float) -> tuple[float, ...] | None:
    """The slopes of ALiBi: powers of 2^(-bias / n) for n heads, n a power of two; the rest lie between them.

    Source: Press et al. 2021 (ALiBi), and its published code for other numbers of heads.
    """
    bias = keys.number("attention.max_alibi_bias", default, 0.0, 1000.0)
    if bias == 0:
        return None
    whole = 1 << (heads.bit_length() - 1)
    first = [2 ** (-bias / whole * (head + 1)) for head in range(whole)]
    between = [2 ** (-bias / (2 * whole) * (2 * head + 1)) for head in range(heads - whole)]
    return tuple(first + between)
