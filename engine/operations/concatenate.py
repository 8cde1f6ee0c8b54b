"""Rows of two buffers as one row."""

from dataclasses import dataclass

import numpy as np

from lltool.engine.program import Buffer, Operation, Tracer
from lltool.engine.reference.context import Context


@dataclass(frozen=True)
class Concatenate(Operation):
    """out = the columns of x, then those of y."""

    x: Buffer
    y: Buffer
    out: Buffer

    def reference(self, run: Context) -> None:
        run[self.out] = np.concatenate([run[self.x], run[self.y]], axis=1)


def concatenate(g: Tracer, x: Buffer, y: Buffer) -> Buffer:
    return g.add(Concatenate(x, y, g.buffer(x.width + y.width, x.rows))).out
