"""The step from the tokens of a batch to those whose logits are computed, or to the texts that they are of."""

from dataclasses import dataclass

import numpy as np

from lltool.engine.program import Buffer, Operation, Rows, Tracer
from lltool.engine.reference.context import Context


@dataclass(frozen=True)
class Select(Operation):
    """out[r] = x[row r of `Batch.outputs`]. The head begins here.

    With `mean`, it is the mean of the rows that the sequence of this token has in the batch.
    """

    changes_rows = True

    x: Buffer
    out: Buffer
    mean: bool = False

    def reference(self, run: Context) -> None:
        x, sequences = run[self.x], run.batch.sequences
        if not self.mean:
            run[self.out] = x[run.selected]
            return
        out = np.empty((len(run.selected), x.shape[1]), x.dtype)
        for row, token in enumerate(run.selected):
            out[row] = x[sequences == sequences[token]].mean(axis=0)
        run[self.out] = out


def select(g: Tracer, x: Buffer, *, mean: bool = False) -> Buffer:
    return g.add(Select(x, g.buffer(x.width, Rows.SELECTED), mean)).out
