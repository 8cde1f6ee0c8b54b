"""Draws the same tasks of a file as llama-perplexity: with std::mt19937(1) and the distributions of GCC's library."""

from collections.abc import Iterator

import numpy as np

_WORD = 1 << 32


def mt19937(seed: int) -> Iterator[int]:
    """Yields the 32-bit words of std::mt19937."""
    state = np.random.RandomState(seed)
    while True:
        yield from state.randint(0, _WORD, 1024, np.uint32).tolist()


def draw_uniform(count: int, wanted: int) -> list[int]:
    """HellaSwag's order: `wanted` of `count` numbers, each drawn by std::uniform_int_distribution from those left.

    libstdc++ (since GCC 11) takes the upper half of word × range, and draws again if that would not be uniform.
    """
    words = mt19937(1)
    left = list(range(count))
    drawn = []
    for _ in range(min(wanted, count)):
        product = next(words) * len(left)
        if product % _WORD < len(left):
            while product % _WORD < _WORD % len(left):
                product = next(words) * len(left)
        drawn.append(left.pop(product // _WORD))
    return drawn


def draw_scaled(count: int, wanted: int) -> list[int]:
    """Winogrande's and multiple choice's order: a word scaled in float32 picks a place, which the last number fills."""
    words = mt19937(1)
    left = list(range(count))
    drawn = []
    for _ in range(min(wanted, count)):
        scaled = np.float32(next(words)) * np.float32(1 / _WORD) * np.float32(len(left))
        place = min(int(scaled), len(left) - 1)  # rounding can give len(left), and there llama.cpp reads past the end
        drawn.append(left[place])
        left[place] = left[-1]
        left.pop()
    return drawn
