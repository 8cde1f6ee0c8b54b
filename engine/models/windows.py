"""The sliding windows that a model's metadata describes."""

import numpy as np

from lltool.gguf.architecture_keys import ArchitectureKeys


def read_windows(
    keys: ArchitectureKeys, layers: int, period: int, default: int, *, full_first: bool
) -> tuple[int, ...]:
    """The window of each layer; the pattern is a flag per layer (true: sliding), or a period with one full layer.

    The full layer is the last of a period, or with `full_first` its first.
    """
    window = keys.integer("attention.sliding_window", default, minimum=0)
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray | list | tuple):
        keys.expect("attention.sliding_window_pattern", len(pattern) == layers, f"one flag for each of {layers} layers")
        slides = [bool(flag) for flag in pattern]
    else:
        period = keys.integer("attention.sliding_window_pattern", period, minimum=0)
        full = 0 if full_first else period - 1
        slides = [period == 0 or layer % period != full for layer in range(layers)]
    return tuple(window if flag else 0 for flag in slides)
