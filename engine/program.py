"""Programs: what a model computes, as a flat list of operations.

An architecture is a Python function over symbolic tensors. It runs once, when a model is loaded, with a `Tracer` that
records a `Program`. The number of tokens is a run-time argument, so one Program serves prompt and decode, and every
executor runs the same one. The operations themselves are in `engine/operations/`; nothing else lists them. Shapes in
comments: T tokens of the batch, H heads, KvH key/value heads, Hd head dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from lltool.engine.state import KeyValue, Slot
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Tensor
from lltool.quant.codec import decode

if TYPE_CHECKING:
    from lltool.engine.reference.context import Context


@dataclass(frozen=True)
class Weight:
    """A tensor as the model file stores it: `data` is (rows, row_bytes) uint8, usually a mapped view.

    Vectors (norms, biases) are always F32.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64))


class Rows(Enum):
    """What a row of a buffer belongs to. An operation runs over rows of one kind."""

    TOKEN = "token"
    SELECTED = "selected row"  # a token whose logits are computed; executors run these in blocks
    SEQUENCE = "sequence"
    ASSIGNMENT = "expert assignment"  # a token and one of its experts


@dataclass(frozen=True)
class Buffer:
    """An activation: rows of `width` values. A token has `each` of the rows of expert assignments, in an order that the
    executor chooses; of other kinds there is one.
    """

    id: int
    width: int
    rows: Rows = Rows.TOKEN
    type: GGMLType = GGMLType.F32
    each: int = 1


@dataclass(frozen=True)
class Calls:
    """Some calls of an executor, for which an operation states its cost."""

    rows: Mapping[Rows, Sequence[int]]  # how many rows of each kind the calls compute; calls without any are left out
    pieces: Sequence[tuple[int, int]]  # the first position and the number of tokens of each piece of a sequence
    key_type: GGMLType
    value_type: GGMLType


@dataclass(frozen=True)
class Cost:
    """The least work of an operation: bytes of weights and cache to read, and multiply-adds by the type of a factor."""

    read: float = 0
    quantized: float = 0  # with weights of a quantized type
    floats: float = 0  # with float weights, keys or values

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.read + other.read, self.quantized + other.quantized, self.floats + other.floats)


@dataclass(frozen=True)
class Operation(ABC):
    """One step of a Program. A subclass is a frozen dataclass whose docstring has the formula.

    Its fields named `out` or `outs` are the buffers that it writes; it reads every other buffer among its fields.
    """

    # Whether element i of the output needs only elements of the inputs in the same unit (a head, a group, a single
    # column), so that the output may take an input's place, and columns can be computed apart from each other.
    in_place: ClassVar[bool] = False
    # Whether it reads rows of another kind than those it writes.
    changes_rows: ClassVar[bool] = False

    @abstractmethod
    def reference(self, run: "Context") -> None:
        """Computes the operation with numpy. This is its definition: all executors must agree with it."""

    @cached_property
    def inputs(self) -> tuple[Buffer, ...]:
        return self._buffers(written=False)

    @cached_property
    def outputs(self) -> tuple[Buffer, ...]:
        return self._buffers(written=True)

    @property
    def rows(self) -> Rows:
        """The kind of rows that it runs over."""
        return (self.outputs or self.inputs)[0].rows

    def _buffers(self, written: bool) -> tuple[Buffer, ...]:
        found: list[Buffer] = []
        for name in self.__dataclass_fields__:
            if (name in ("out", "outs")) == written:
                value = getattr(self, name)
                if isinstance(value, Buffer):
                    found.append(value)
                elif isinstance(value, tuple) and value and isinstance(value[0], Buffer):
                    found += value
        return tuple(found)

    @property
    def title(self) -> str:
        """The name in tables."""
        return type(self).__name__.lower()

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights that it takes, by name, with the shapes that they must have."""
        return {}

    @property
    def multiplied(self) -> dict[str, Buffer]:
        """Its matrices that rows of a buffer are multiplied with, by name, and the buffer."""
        return {}

    @property
    def assigned(self) -> "tuple[Buffer, int] | None":
        """If its matrices are stacks of experts: the buffer with the experts of each token, and how many there are."""
        return None

    @property
    def multiplied_part(self) -> tuple[int, int] | None:
        """If its matrices are stacks with one for each head: how wide a head is, and how many of its first columns are
        multiplied. None if every row of a buffer is multiplied as a whole."""
        return None

    @property
    def state(self) -> tuple[KeyValue | Slot, ...]:
        """What it keeps of a sequence for the tokens that follow."""
        return ()

    def cost(self, calls: Calls, weights: Mapping[str, Weight]) -> Cost:
        """The cost in some calls. What is small beside matrices and the cache is left out, so most have none."""
        return Cost()

    def mean_bias(self, out: Buffer, program: "Program") -> NDArray[np.float64] | None:
        """What a bias adds to each row of its output `out`, (width,), on average over positions; None for nothing."""
        return None


AnyOperation = TypeVar("AnyOperation", bound=Operation)


@dataclass(frozen=True)
class Program:
    """A traced model.

    Each kind of row that its buffers have is in `arena_widths`, with the values of 32 bits that executors reserve for
    it: per row, or per token for expert assignments. `offsets[buffer.id]` is the buffer's place in the arena of its
    kind. `logits` is the last buffer. `stages` are the ends of the embedding and of each block as they were traced: the
    number of operations up to there, and the buffer that holds what the next stage reads.
    """

    ops: tuple[Operation, ...]
    weights: Mapping[str, Weight]
    offsets: tuple[int, ...]
    arena_widths: Mapping[Rows, int]
    logits: Buffer
    stages: tuple[tuple[int, Buffer], ...] = ()

    @cached_property
    def head(self) -> int:
        """`ops[:head]`, the body, run once for a batch, `ops[head:]` for each block of its selected rows."""
        return next((i for i, op in enumerate(self.ops) if op.rows is Rows.SELECTED), len(self.ops))

    def place(self, buffer: Buffer) -> tuple[Rows, int]:
        """The buffer's arena and its offset there; buffers of one place share their memory."""
        return buffer.rows, self.offsets[buffer.id]

    def mean_bias(self, buffer: Buffer) -> NDArray[np.float64] | None:
        """What a bias adds to each row of `buffer`, (width,), on average over positions; None for nothing."""
        maker = next((op for op in self.ops if buffer in op.outputs), None)
        return maker.mean_bias(buffer, self) if maker else None


def end_with_hidden_states(program: Program) -> Program:
    """The program without its last matrix: what it gives, as `logits`, are the states that the matrix would multiply.

    These are the normed states of the selected rows, (R, width).
    """
    last = max(index for index, op in enumerate(program.ops) if op.multiplied)
    ops, (states,) = program.ops[:last], program.ops[last].inputs
    offsets, widths = assign_offsets(ops, len(program.offsets), states)
    return Program(ops, program.weights, offsets, widths, states)


# Types that executors do not multiply with: plain integers, doubles and the helper formats of dot products.
NOT_MULTIPLIED = frozenset(
    {GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64, GGMLType.Q8_1, GGMLType.Q8_K}
)


def read_weight(tensor: Tensor) -> Weight:
    """Makes a weight: a matrix stays mapped; a vector of another type is decoded to float32, as kernels need it."""
    if len(tensor.shape) != 1 or tensor.type == GGMLType.F32 or tensor.type in NOT_MULTIPLIED:
        return Weight(tensor.name, tensor.type, tensor.shape, tensor.data())
    values = decode(tensor.data(), tensor.type)
    return Weight(tensor.name, GGMLType.F32, tensor.shape, values.view(np.uint8))


@dataclass
class Tracer:
    """Records operations. Weights have their names in the file; asking for a missing or misshapen one is an error."""

    weights: dict[str, Weight]
    ops: list[Operation] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    stages: list[tuple[int, Buffer]] = field(default_factory=list)

    def buffer(self, width: int, rows: Rows = Rows.TOKEN, *, type: GGMLType = GGMLType.F32, each: int = 1) -> Buffer:
        """A new buffer, for the output of an operation."""
        self.buffers.append(Buffer(len(self.buffers), width, rows, type, each))
        return self.buffers[-1]

    def like(self, x: Buffer) -> Buffer:
        """A new buffer of the same width and kind of rows."""
        return self.buffer(x.width, x.rows, each=x.each)

    def add(self, op: AnyOperation) -> AnyOperation:
        """Checks the operation's weights and records it. Raises InputError."""
        assert op.changes_rows or len({b.rows for b in op.inputs + op.outputs}) == 1, f"{op} mixes kinds of rows"
        for name, shape in op.weight_shapes.items():
            self._take(name, shape)
        self.ops.append(op)
        return op

    def end_block(self, x: Buffer) -> Buffer:
        """Marks the end of the embedding or of a block; x, which is returned, is all that the next one reads."""
        self.stages.append((len(self.ops), x))
        return x

    def constants(self, weight: str, count: int) -> NDArray[np.float64]:
        """The values of a small float32 tensor that the trace itself uses."""
        self._take(weight, (count,))
        assert self.weights[weight].type == GGMLType.F32
        return self.weights[weight].data.reshape(-1).view(np.float32).astype(np.float64)

    def pass_over(self, *weights: str) -> None:
        """Notes tensors that some files have although nothing reads them."""
        self.used.update(weights)

    def finish(self) -> Program:
        """Ends the trace; the last operation's output is the logits. Raises InputError if a weight was not used."""
        unused = sorted(self.weights.keys() - self.used)
        if unused:
            names = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
            raise InputError(f"tensors that this architecture has no use for: {names}")
        logits = self.ops[-1].outputs[0]
        offsets, widths = assign_offsets(self.ops, len(self.buffers), logits)
        program = Program(tuple(self.ops), self.weights, offsets, widths, logits, tuple(self.stages))
        head = self.ops[program.head :]
        assert {op.rows for op in head} == {Rows.SELECTED}, "an architecture ends with its head"
        assert not any(op.changes_rows for op in head[1:]), "the head selects its rows once"
        return program

    def _take(self, name: str, shape: tuple[int, ...]) -> None:
        """Checks a weight's shape and type, and marks it as used. Raises InputError."""
        weight = self.weights.get(name)
        if weight is None:
            raise InputError(f"{name}: tensor missing, wanted one of shape {shape}")
        if weight.type == GGMLType.F32 and _without_ones(weight.shape) == _without_ones(shape):  # axes of length 1
            weight = self.weights[name] = replace(weight, shape=shape)
        if weight.shape != shape:
            raise InputError(f"{name}: shape {weight.shape}, wanted {shape}")
        if weight.type in NOT_MULTIPLIED:
            raise InputError(
                f"{name}: {weight.type.name} is not a type to compute with, wanted floats or a quantized type"
            )
        self.used.add(name)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def assign_offsets(ops: Sequence[Operation], count: int, logits: Buffer) -> tuple[tuple[int, ...], Mapping[Rows, int]]:
    """Gives each buffer an offset, reusing the place of a buffer of the same kind and width that is no longer needed.

    The logits, and the buffer from which they are computed in place, are not in an arena (offset -1): executors keep
    them in a separate block. The head can run again for each block of rows, because kinds have arenas of their own: it
    writes nothing that the body made.
    """
    last_use = {b.id: i for i, op in enumerate(ops) for b in op.inputs}
    outside = {logits.id}
    for op in reversed(ops):
        if op.in_place and len(op.inputs) == 1 and op.outputs[0].id in outside:
            outside.add(op.inputs[0].id)

    offsets = [-1] * count
    free: dict[tuple[Rows, GGMLType, int, int], list[int]] = {}
    ends: dict[Rows, int] = {}

    def release(buffers: Iterable[Buffer]) -> None:
        for b in buffers:
            free.setdefault((b.rows, b.type, b.width, b.each), []).append(offsets[b.id])

    for i, op in enumerate(ops):
        outputs = [b for b in op.outputs if b.id not in outside]
        dead = {b.id: b for b in op.inputs if last_use[b.id] == i and b.id not in outside}.values()
        if op.in_place:
            release(dead)
        for b in outputs:
            end = ends.setdefault(b.rows, 0)
            if places := free.get((b.rows, b.type, b.width, b.each)):
                offsets[b.id] = places.pop()
            else:
                offsets[b.id], ends[b.rows] = end, end + (b.width * b.each + 15) // 16 * 16
        if not op.in_place:
            release(dead)
        release(b for b in outputs if b.id not in last_use)
    return tuple(offsets), ends
