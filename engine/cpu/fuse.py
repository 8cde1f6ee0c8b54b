"""Fuses operations: a linear runs together with the norm before it and with operations on its outputs.

A thread that has multiplied some rows of a weight has computed as many columns of the output. An operation that needs
only these columns can run on them at once, without waiting for other threads, while they are still in the thread's
cache. Fusion is a policy of this executor and does not change the meaning of the operations.
"""

from collections import Counter
from dataclasses import dataclass, field

from lltool.engine.operations.attention import Attention
from lltool.engine.operations.elementwise import Gated
from lltool.engine.operations.experts import ExpertLinear
from lltool.engine.operations.linear import Linear
from lltool.engine.operations.norm import LayerNorm, Norm
from lltool.engine.program import Operation, Program, Rows

AnyNorm = Norm | LayerNorm


@dataclass(frozen=True)
class FusedOps:
    """An operation and, for a linear, the operations that are fused with it.

    `norm` computes the linear's input, which no other operation reads. The linear's outputs form `groups`: outputs in a
    group have the same width, and a thread computes the same columns of each together. `after` are operations on the
    columns of a group, each with the index of its group. For an attention, `stores` are the indices of the groups of
    the preceding linear that hold its keys and its values, so that the linear can store them; -1 means no group. For
    experts, `activation` combines their two outputs.
    """

    op: Operation
    norm: AnyNorm | None = None
    groups: tuple[tuple[int, ...], ...] = ()
    after: tuple[tuple[Operation, int], ...] = ()
    stores: tuple[int, int] = (-1, -1)
    activation: Gated | None = None

    @property
    def ops(self) -> tuple[Operation, ...]:
        """All fused operations in the program's order."""
        before, after = (self.norm,) if self.norm else (), (self.activation,) if self.activation else ()
        return (*before, self.op, *(op for op, _ in self.after), *after)


def fuse(program: Program) -> list[FusedOps]:
    """Groups all operations of `program`, in order."""
    readers = Counter(buffer.id for op in program.ops for buffer in op.inputs)
    fused: list[FusedOps] = []
    columns: _Columns | None = None  # of the linear that came just before
    norm: AnyNorm | None = None
    for op, following in zip(program.ops, (*program.ops[1:], None), strict=True):
        if fused and op is fused[-1].activation:
            continue
        if isinstance(op, AnyNorm) and isinstance(following, Linear) and _can_fuse(program, op, following, readers):
            norm = op
        elif isinstance(op, ExpertLinear) and isinstance(following, Gated) and _activates(program, op, following):
            fused.append(FusedOps(op, activation=following))
            columns = None
        elif isinstance(op, Linear):
            columns = _Columns(program, op, norm)
            fused.append(columns.fused())
            norm = None
        elif columns and columns.take(op):
            fused[-1] = columns.fused()
        else:
            fused.append(FusedOps(op, stores=columns.stores(op) if columns else (-1, -1)))
            columns = None
    return fused


def _can_fuse(program: Program, norm: AnyNorm, linear: Linear, readers: Counter[int]) -> bool:
    """Whether only `linear` reads the norm's output, and no output of `linear` takes the place of the norm's input."""
    places = {program.place(out) for out in linear.outs}
    return linear.x == norm.out and readers[norm.out.id] == 1 and program.place(norm.x) not in places


def _activates(program: Program, experts: ExpertLinear, gated: Gated) -> bool:
    """Whether the operation is on the two outputs of the experts, and writes nothing that they still read."""
    return experts.outs == (gated.gate, gated.up) and program.place(gated.out) != program.place(experts.x)


_Place = tuple[Rows, int]


@dataclass
class _Columns:
    """Collects the operations on the columns of a linear's outputs.

    Threads run the fused operations without waiting for each other. So no group may write what another group reads or
    writes, nor what the linear reads.
    """

    program: Program
    linear: Linear
    norm: AnyNorm | None
    after: list[tuple[Operation, int]] = field(default_factory=list)
    group: dict[int, int] = field(init=False)  # by id of each buffer that was computed
    touched: list[set[_Place]] = field(
        init=False
    )  # places that each group uses, by group; merged groups keep their entry

    def __post_init__(self) -> None:
        linear, place = self.linear, self.program.place
        residual = set() if linear.residual is None else {place(linear.residual)}
        self.group = {out.id: number for number, out in enumerate(linear.outs)}
        self.touched = [{place(out)} | residual for out in linear.outs]

    def take(self, op: Operation) -> bool:
        """Adds an operation if it can run column by column; returns whether it can."""
        if not op.in_place:
            return False
        mine = {self.group[buffer.id] for buffer in op.inputs if buffer.id in self.group}
        (out,) = op.outputs
        used = [self.program.place((self.norm or self.linear).x)]
        used += [place for number, places in enumerate(self.touched) if number not in mine for place in places]
        if not mine or self.program.place(out) in used:
            return False
        first = min(mine)
        self.group = {id: first if number in mine else number for id, number in self.group.items()}
        self.group[out.id] = first
        self.after = [(op, first if number in mine else number) for op, number in self.after]
        self.after.append((op, first))
        self.touched[first].update(self.program.place(buffer) for buffer in (*op.inputs, out))
        return True

    def stores(self, op: Operation) -> tuple[int, int]:
        """The groups of an attention's keys and values; (-1, -1) if the linear does not compute both."""
        if not isinstance(op, Attention) or not {op.k.id, op.v.id} <= self.group.keys():
            return -1, -1
        numbers = self._numbers()
        return numbers[self.group[op.k.id]], numbers[self.group[op.v.id]]

    def fused(self) -> FusedOps:
        numbers = self._numbers()
        groups: list[tuple[int, ...]] = [()] * len(numbers)
        for part, out in enumerate(self.linear.outs):
            groups[numbers[self.group[out.id]]] += (part,)
        after = tuple((op, numbers[group]) for op, group in self.after)
        return FusedOps(self.linear, self.norm, tuple(groups), after)

    def _numbers(self) -> dict[int, int]:
        """The consecutive index, from 0, of each group that has not been merged into another."""
        return {group: number for number, group in enumerate(sorted(set(self.group.values())))}
