"""What the inputs of linears are like, for importance and calibration: a Program with observers between its operations.

An observer is one more operation, so there is no second code path, and a Program without any pays nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lltool.engine.program import Linear, Observe, Op, Program


@dataclass(frozen=True)
class Observation:
    """Sums of the squares of each input column of a matrix over `rows` rows; (columns,) float64."""

    sums: NDArray[np.float64]
    rows: int


def observe_linears(program: Program, choose: Callable[[str], bool]) -> Program:
    """`program` with an observer at the input of each linear that has a weight which `choose` takes by its name.

    In the head, only rows that want logits are seen, as often as their logits are computed.
    """
    ops: list[Op] = []
    head = program.head
    for index, op in enumerate(program.ops):
        if isinstance(op, Linear) and (chosen := tuple(filter(choose, op.weights))):
            ops.append(Observe(op.x, chosen))
            head += index < program.head
        ops.append(op)
    return replace(program, ops=tuple(ops), head=head)
