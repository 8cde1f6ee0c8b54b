"""The correlations between the columns of each matrix's input on a text, which compensated rounding needs.

Matrices are requested layer by layer, in the order of files. Only the last layer is kept, so memory does not grow with
the number of layers.
"""

import numpy as np
from numpy.typing import NDArray

from lltool.engine.program import Buffer, Operation, Program
from lltool.engine.segments import find_cuts, parallel_batch, part_from, part_until
from lltool.eval.search.sensitivity import run_logits
from lltool.quant.compensate import Correlation

_AT_ONCE = 8  # windows
_KEPT = 2  # parts of the program; in files, the second half of a layer may come before the first


def _whole(op: Operation) -> dict[str, Buffer]:
    """The matrices that whole rows of a buffer are multiplied with, unless they are stacks, and the buffer."""
    return {} if op.assigned or op.multiplied_part else op.multiplied


class LinearInputs:
    """The inputs of the matrices in a program's body (all before the head) on the tokens of `windows`.

    Stacks of matrices are left out: each would need a correlation of its own, that of the tokens an expert sees or of
    the columns of a head.
    """

    def __init__(self, program: Program, windows: NDArray[np.int32], threads: int) -> None:
        self._program, self._windows, self._threads = program, windows, threads
        self._known = {name for op in program.ops[: program.head] for name in _whole(op)}
        self._restart()

    def has(self, name: str) -> bool:
        """Whether the body multiplies by a matrix of this name."""
        return name in self._known

    def correlation(self, name: str) -> Correlation:
        """The correlation of the input columns of the matrix `name`."""
        assert self.has(name), name
        if name in self._passed:
            self._restart()
        while True:
            for found in self._found:
                if name in found:
                    return found[name]
            self._advance()

    def _restart(self) -> None:
        self._part, self._begun = self._program, 0
        self._ids = self._windows  # token ids, or row numbers of the values kept before a later part
        self._found: list[dict[str, Correlation]] = []  # for the last parts
        self._passed: set[str] = set()  # matrices of the parts before those

    def _advance(self) -> None:
        """Computes the correlations up to the next cut, and continues with the part after it."""
        part = self._part
        cut = next(cut for cut in find_cuts(part) if cut[0] > self._begun)
        while len(self._found) >= _KEPT:
            self._passed |= self._found.pop(0).keys()
        found: dict[str, Correlation] = {}
        for index, op in enumerate(part.ops[: cut[0]]):
            for x in dict.fromkeys(_whole(op).values()):
                shared = Correlation.of(self._moments(part_until(part, (index, x))))
                found |= {name: shared for name, read in op.multiplied.items() if read == x}
        self._found.append(found)
        kept = np.concatenate([self._values(part_until(part, cut), some) for some in self._batches()])
        self._part, self._begun = part_from(part, cut, kept), 1
        self._ids = np.arange(self._windows.size, dtype=np.int32).reshape(self._windows.shape)

    def _moments(self, program: Program) -> NDArray[np.float64]:
        width = program.logits.width
        total = np.zeros((width, width))
        for some in self._batches():
            x = self._values(program, some)
            total += x.T @ x
        return total / self._windows.size

    def _batches(self) -> list[NDArray[np.int32]]:
        return [self._ids[start : start + _AT_ONCE] for start in range(0, len(self._ids), _AT_ONCE)]

    def _values(self, program: Program, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """The values of the program's last buffer, a row for each token."""
        batch, pages = parallel_batch(ids, np.arange(ids.size))
        return run_logits(program, batch, pages, self._threads)
