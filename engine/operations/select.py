"""The step from the tokens of a batch to those whose logits are computed."""

from dataclasses import dataclass

from lltool.engine.program import Buffer, Operation, Rows, Tracer
from lltool.engine.reference.context import Context


@dataclass(frozen=True)
class Select(Operation):
    """out[r] = x[row r of `Batch.outputs`]. The head begins here."""

    changes_rows = True

    x: Buffer
    out: Buffer

    def reference(self, run: Context) -> None:
        run[self.out] = run[self.x][run.selected]


def select(g: Tracer, x: Buffer) -> Buffer:
    return g.add(Select(x, g.buffer(x.width, Rows.SELECTED))).out
