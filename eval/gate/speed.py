"""Speed relative to the machine: tokens a second, divided by the speed of a probe that runs none of our code."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import numpy as np

from lltool.engine.model import Model
from lltool.eval.bench.results.statistics import summarize_samples
from lltool.eval.gate.judge import half_width

PREFILL, DECODE = 256, 16  # tokens that are timed together
_COPIED = 64 << 20  # bytes to copy: more than caches hold
_SIDE = 512  # rows and columns of the matrices that are multiplied

Relative = tuple[float, float]  # a speed in units of a probe, and half its 95 % interval as a fraction


@dataclass(frozen=True)
class Speed:
    """Samples in the order of time: tokens a second, bytes copied a second, and float32 operations a second."""

    threads: int
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    copied: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)

    def sample(self, model: Model, count: int = 3) -> None:
        """Times prefill and decode, each with its probe; calls before and after other work show the machine's drift."""
        sequence = model.new_sequence()
        tokens = np.arange(min(PREFILL, model.batch, model.context - DECODE)) % min(1000, model.config.vocab)
        try:
            for copying in _time_copies(self.threads, count):
                sequence.truncate(0)
                self.prefill.append(len(tokens) / _time(lambda: model.evaluate(sequence, tokens)))
                self.computed.append(2 * _SIDE**3 / _time_product())
                self.decode.append(DECODE / _time(lambda: [model.evaluate(sequence, [1]) for _ in range(DECODE)]))
                self.copied.append(_COPIED / copying)
        finally:
            sequence.free()

    @property
    def relative_prefill(self) -> Relative:
        return _relative(self.prefill, self.computed)

    @property
    def relative_decode(self) -> Relative:
        return _relative(self.decode, self.copied)


def _relative(speeds: Sequence[float], probes: Sequence[float]) -> Relative:
    """The median ratio of each speed to the probe next to it, and half its 95 % interval as a fraction."""
    summary = summarize_samples([speed / probe for speed, probe in zip(speeds, probes, strict=True)])
    return summary.median, half_width(summary.low, summary.high)


def _time(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def _time_copies(threads: int, count: int) -> Iterator[float]:
    """Yields `count` times the seconds that `threads` threads take to copy the bytes, each the median of three."""
    source = np.ones((threads, _COPIED // 8 // threads))
    target = np.empty_like(source)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(count):
            yield median(_time(lambda: list(pool.map(np.copyto, target, source))) for _ in range(3))


def _time_product() -> float:
    """Seconds for a product of two matrices with numpy's BLAS: the median of three, because the first warms up."""
    matrix = np.ones((_SIDE, _SIDE), np.float32)
    return median(_time(lambda: matrix @ matrix) for _ in range(3))
