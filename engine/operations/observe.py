"""Observers, which a Program runs to sum up the inputs of matrices for importance and calibration.

An observer is an operation like the others, so there is no second code path, and a Program without observers costs
nothing extra.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lltool.engine.executor import Observation
from lltool.engine.program import Buffer, Operation, Program
from lltool.engine.reference.context import Context, Floats


@dataclass(frozen=True)
class Observe(Operation):
    """Adds the square of each element of x, row by row, to sums that the executor keeps.

    `weights` are matrices that x is multiplied with next. If they are stacks of `experts`, `chosen` holds the experts
    of each token, and an expert's sums are over the rows that it is multiplied with. With `part`, a width and a number
    of columns, only so many first columns of each width of x count, as in `Operation.multiplied_part`.
    """

    x: Buffer
    weights: tuple[str, ...]
    chosen: Buffer | None = None
    experts: int = 1
    part: tuple[int, int] | None = None

    def columns(self, rows: Floats) -> Floats:
        """The columns that count, of rows (n, width)."""
        if self.part is None:
            return rows
        width, columns = self.part
        return rows.reshape(len(rows), -1, width)[..., :columns].reshape(len(rows), -1)

    def reference(self, run: Context) -> None:
        x = self.columns(run[self.x])
        seen = run.observations.setdefault(self.weights, Observation.nothing(self.experts, x.shape[1]))
        if self.chosen is None:
            owners = np.zeros(len(x), np.int64)
        else:
            owners = run[self.chosen].astype(np.int64).reshape(-1)
            x = x.repeat(len(owners) // len(x), axis=0)
        np.add.at(seen.sums, owners, np.square(x, dtype=np.float64))
        np.add.at(seen.rows, owners, 1)


def observe_linears(program: Program, choose: Callable[[str], bool]) -> Program:
    """Adds an observer to what each matrix is multiplied with whose name `choose` accepts.

    In the head, an observer sees only the rows whose logits are computed, each time they are computed.
    """
    ops: list[Operation] = []
    for op in program.ops:
        routed, experts = op.assigned or (None, 1)
        for x in dict.fromkeys(op.multiplied.values()):
            if chosen := tuple(name for name, read in op.multiplied.items() if read == x and choose(name)):
                ops.append(Observe(x, chosen, routed, experts, op.multiplied_part))
        ops.append(op)
    return replace(program, ops=tuple(ops))
