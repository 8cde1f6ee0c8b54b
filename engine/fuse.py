"""Which operations of a program can run as one: a linear, the norm before it, and what is done to its outputs.

A thread that has multiplied some rows of a weight has made as many columns of the output. What needs no others can be
done to them at once: no other thread is waited for, and they are still in its cache. The meaning of the operations does
not change, and executors need not know of this.
"""

from collections import Counter
from dataclasses import dataclass, field

from lltool.engine.program import ELEMENTWISE, Attention, Buffer, Linear, Norm, Op, Program, inputs, outputs


@dataclass(frozen=True)
class Step:
    """An operation, and for a linear those that it is fused with.

    `norm` makes the linear's input, which nobody else reads. The linear's outputs are made in `groups`: those of one
    have the same width, and the same columns of each are made together. `after` are operations on such columns, each
    with the number of its group. `stores` says of which groups of the linear just before an attention's keys and values
    are, so that they can be stored there; -1 means that they are not.
    """

    op: Op
    norm: Norm | None = None
    groups: tuple[tuple[int, ...], ...] = ()
    after: tuple[tuple[Op, int], ...] = ()
    stores: tuple[int, int] = (-1, -1)

    @property
    def ops(self) -> tuple[Op, ...]:
        """In the program's order."""
        return (*((self.norm,) if self.norm else ()), self.op, *(op for op, _ in self.after))


def fuse(program: Program) -> list[Step]:
    """All operations of `program`, in order."""
    readers = Counter(buffer.id for op in program.ops for buffer in inputs(op))
    steps: list[Step] = []
    columns: _Columns | None = None  # of the step before
    norm: Norm | None = None
    for op, following in zip(program.ops, (*program.ops[1:], None), strict=True):
        if isinstance(op, Norm) and isinstance(following, Linear) and _can_fuse(program, op, following, readers):
            norm = op
        elif isinstance(op, Linear):
            columns = _Columns(program, op, norm)
            steps.append(columns.step())
            norm = None
        elif columns and columns.take(op):
            steps[-1] = columns.step()
        else:
            steps.append(Step(op, stores=columns.stores(op) if columns else (-1, -1)))
            columns = None
    return steps


def _can_fuse(program: Program, norm: Norm, linear: Linear, readers: Counter[int]) -> bool:
    """Whether `linear` alone reads what `norm` makes, and its outputs leave the place alone that it is made of."""
    places = {program.offsets[out.id] for out in linear.outs}
    return linear.x == norm.out and readers[norm.out.id] == 1 and program.offsets[norm.x.id] not in places


@dataclass
class _Columns:
    """What has been done to the columns of a linear's outputs.

    Another thread can be behind or ahead by everything that is fused: what one group reads or writes, no other group
    may write, nor may any write what the linear reads.
    """

    program: Program
    linear: Linear
    norm: Norm | None
    after: list[tuple[Op, int]] = field(default_factory=list)
    group: dict[int, int] = field(init=False)  # of each buffer that was made
    touched: list[set[int]] = field(init=False)  # places, by group

    def __post_init__(self) -> None:
        linear = self.linear
        residual = set() if linear.residual is None else {self._place(linear.residual)}
        self.group = {out.id: number for number, out in enumerate(linear.outs)}
        self.touched = [{self._place(out)} | residual for out in linear.outs]

    def take(self, op: Op) -> bool:
        """Adds an operation, if that can run column by column."""
        if not isinstance(op, ELEMENTWISE):
            return False
        mine = {self.group[buffer.id] for buffer in inputs(op) if buffer.id in self.group}
        (out,) = outputs(op)
        used = [self._place((self.norm or self.linear).x)]
        used += [place for number, places in enumerate(self.touched) if number not in mine for place in places]
        if not mine or self._place(out) in used:
            return False
        first = min(mine)
        self.group = {id: first if number in mine else number for id, number in self.group.items()}
        self.group[out.id] = first
        self.after = [(op, first if number in mine else number) for op, number in self.after]
        self.after.append((op, first))
        self.touched[first].update(*(self.touched[number] for number in mine))
        self.touched[first].update(self._place(buffer) for buffer in (*inputs(op), out))
        return True

    def stores(self, op: Op) -> tuple[int, int]:
        if not isinstance(op, Attention) or not {op.k.id, op.v.id} <= self.group.keys():
            return -1, -1
        numbers = self._numbers()
        return numbers[self.group[op.k.id]], numbers[self.group[op.v.id]]

    def step(self) -> Step:
        numbers = self._numbers()
        groups: list[tuple[int, ...]] = [()] * len(numbers)
        for part, out in enumerate(self.linear.outs):
            groups[numbers[self.group[out.id]]] += (part,)
        after = tuple((op, numbers[group]) for op, group in self.after)
        return Step(self.linear, self.norm, tuple(groups), after)

    def _numbers(self) -> dict[int, int]:
        """Groups without those that others took in, counted from 0."""
        return {group: number for number, group in enumerate(sorted(set(self.group.values())))}

    def _place(self, buffer: Buffer) -> int:
        return self.program.offsets[buffer.id]
