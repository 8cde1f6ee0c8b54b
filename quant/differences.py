"""How much the weights of two models differ, tensor by tensor, whatever their types."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lltool.gguf.source import Source, Tensor
from lltool.quant.codec import decode

_WINDOW_WEIGHTS = 4 << 20  # weights that are decoded at a time, of each model


@dataclass(frozen=True)
class Difference:
    """The difference of one tensor's weights.

    `relative` is the sum of the squared differences over the sum of the first model's squared weights, `largest` the
    largest difference in absolute value. Both are NaN if a weight is NaN or infinite in only one model; one that is the
    same in both makes no difference.
    """

    name: str
    relative: float
    largest: float

    @property
    def is_equal(self) -> bool:
        return self.largest == 0


def compare_weights(
    before: Source, after: Source, progress: Callable[[int, int], None] | None = None
) -> Iterator[Difference]:
    """Compares the tensors that both models have in the same shape, in the order of the first.

    `progress` gets the weights compared so far and their total.
    """
    others = {tensor.name: tensor for tensor in after.tensors}
    pairs = [
        (tensor, others[tensor.name])
        for tensor in before.tensors
        if tensor.name in others and others[tensor.name].shape == tensor.shape
    ]
    total = sum(tensor.rows * tensor.columns for tensor, _ in pairs)
    done = 0
    for old, new in pairs:
        yield _compare(old, new)
        done += old.rows * old.columns
        if progress:
            progress(done, total)


def _compare(old: Tensor, new: Tensor) -> Difference:
    squares, changed, largest = 0.0, 0.0, 0.0
    step = max(1, _WINDOW_WEIGHTS // old.columns)
    for start in range(0, old.rows, step):
        stop = min(start + step, old.rows)
        data = old.read(start, stop), new.read(start, stop)
        is_same = old.type == new.type and np.array_equal(*data)
        one = decode(data[0], old.type)
        with np.errstate(invalid="ignore", over="ignore"):
            squares += float(np.sum(np.square(one, dtype=np.float64)))
            if is_same:
                continue
            other = decode(data[1], new.type)
            gap = other.astype(np.float64) - one
            gap[(one == other) | (np.isnan(one) & np.isnan(other))] = 0
            changed += float(np.sum(gap * gap))
            largest = float(np.maximum(largest, np.max(np.abs(gap))))  # NaN stays NaN
    if not np.isfinite(largest):
        return Difference(old.name, np.nan, np.nan)
    return Difference(old.name, 0.0 if largest == 0 else changed / squares if squares else np.inf, largest)
