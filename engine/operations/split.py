"""The step from one buffer to several with a part of its columns each."""

from collections.abc import Sequence
from dataclasses import dataclass

from lltool.engine.program import Buffer, Operation, Tracer
from lltool.engine.reference.context import Context


@dataclass(frozen=True)
class Split(Operation):
    """A row of x has `groups` equal parts, each of which begins with columns of outs[0], then of outs[1], and so on."""

    x: Buffer
    outs: tuple[Buffer, ...]
    groups: int

    def reference(self, run: Context) -> None:
        parts = run[self.x].reshape(-1, self.groups, self.x.width // self.groups)
        first = 0
        for out in self.outs:
            width = out.width // self.groups
            run[out] = parts[..., first : first + width].reshape(-1, out.width)
            first += width


def split(g: Tracer, x: Buffer, widths: Sequence[int], groups: int = 1) -> tuple[Buffer, ...]:
    """Parts of `widths` columns in all."""
    assert sum(widths) == x.width
    assert all(width % groups == 0 for width in widths)
    return g.add(Split(x, tuple(g.buffer(width, x.rows) for width in widths), groups)).outs
