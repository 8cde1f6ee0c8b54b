"""What attention makes of the distance between two tokens: sliding windows and ALiBi."""

import numpy as np

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


def read_windows(keys: ArchitectureKeys, layers: int, period: int, *, full_first: bool) -> tuple[int, ...]:
    """The window of each layer; the pattern is a flag per layer (true: sliding), or a period with one full layer."""
    window = keys.integer("attention.sliding_window", 0, minimum=0)
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray | list | tuple):
        keys.expect("attention.sliding_window_pattern", len(pattern) == layers, f"one flag for each of {layers} layers")
        slides = [bool(flag) for flag in pattern]
    else:
        period = keys.integer("attention.sliding_window_pattern", period, minimum=0)
        full = 0 if full_first else period - 1
        slides = [period == 0 or layer % period != full for layer in range(layers)]
    return tuple(window if flag else 0 for flag in slides)
