"""A model whose first layers run on the CPU and the others on a device; one buffer crosses, once a batch."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import Batch
from lltool.engine.executor import Executor, Observation
from lltool.engine.gpu.executor import GpuExecutor
from lltool.engine.program import Program
from lltool.engine.segments import Cut, find_cuts, part_from, part_until
from lltool.gguf.errors import InputError


def cut_before_last(program: Program, layers: int) -> Cut:
    """The place before the last `layers` blocks, of which there are more. Raises InputError if it cannot be cut."""
    cut = program.stages[len(program.stages) - 1 - layers]
    if cut not in find_cuts(program):
        raise InputError(
            f"-ngl {layers}: this model cannot be cut, as its layers share more than one buffer; use -ngl all or 0"
        )
    return cut


class SplitExecutor:
    """Runs the program up to a cut with one executor, and the rest with another."""

    def __init__(
        self,
        program: Program,
        cut: Cut,
        make_first: Callable[[Program], Executor],
        make_last: Callable[[Program], GpuExecutor],
    ) -> None:
        nothing = np.zeros((1, cut[1].width), np.float32)
        self._first = make_first(part_until(program, cut))
        self._last = make_last(part_from(program, cut, nothing))
        self.head_rows = self._last.head_rows

    def run(self, batch: Batch) -> None:
        count = len(batch.tokens)
        self._first.run(replace(batch, outputs=np.arange(count, dtype=np.int32)))
        crossing = [
            self._first.logits(start, min(start + self._first.head_rows, count)).copy()
            for start in range(0, count, self._first.head_rows)
        ]
        self._last.run(batch, np.concatenate(crossing))

    def logits(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._last.logits(start, stop)

    def score(self, start: int, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        return self._last.score(start, targets)

    def compare(self, start: int, base: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        return self._last.compare(start, base, targets)

    def take_observations(self) -> dict[str, Observation]:
        return {**self._first.take_observations(), **self._last.take_observations()}

    def copy_page(self, source: int, target: int) -> None:
        self._first.copy_page(source, target)
        self._last.copy_page(source, target)
