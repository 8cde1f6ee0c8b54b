"""The arena plan: whatever the operations, no buffer is overwritten while somebody still needs it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lltool.engine.operations.attention import Attention, attend
from lltool.engine.operations.elementwise import Scale, add, gated, scale, softcap
from lltool.engine.operations.embed import embed
from lltool.engine.operations.experts import shared_gate
from lltool.engine.operations.linear import Linear, linear
from lltool.engine.operations.norm import norm
from lltool.engine.operations.rope import rope
from lltool.engine.operations.select import Select, select
from lltool.engine.program import Buffer, Program, Rows, Tracer, Weight
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType

WIDTHS = (16, 24, 64)
VOCAB = 100


def weight(name: str, *shape: int) -> Weight:
    return Weight(name, GGMLType.F32, shape, np.zeros((int(np.prod(shape[:-1])), shape[-1] * 4), np.uint8))


WEIGHTS = {
    "embd": weight("embd", VOCAB, WIDTHS[0]),
    **{f"norm.{n}": weight(f"norm.{n}", n) for n in WIDTHS},
    **{f"{a}.{b}{c}": weight(f"{a}.{b}{c}", b, a) for a in WIDTHS for b in (*WIDTHS, VOCAB) for c in ("", "'", "''")},
}


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A random graph: any buffer so far may be read again, some are never read."""
    g = Tracer(WEIGHTS, used=set(WEIGHTS))
    live = [embed(g, "embd", VOCAB, WIDTHS[0])]

    def pick(width: int | None = None) -> Buffer:
        return draw(st.sampled_from([b for b in live if width is None or b.width == width]))

    def step() -> None:
        x = pick()
        match draw(st.sampled_from(["norm", "linear", "rope", "attention", "gated", "add", "scale", "softcap"])):
            case "norm":
                live.append(norm(g, x, f"norm.{x.width}", 1e-5))
            case "linear":
                widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=3))
                same = [b for b in live if b.width == widths[0]]
                residual = draw(st.sampled_from([None, *same])) if len(widths) == 1 else None
                live.extend(
                    linear(g, x, [f"{x.width}.{width}" + "'" * i for i, width in enumerate(widths)], widths, residual)
                )
            case "rope":
                live.append(rope(g, x, 8, (1.0, 0.5), 1.0, False))
            case "attention":
                options = {"layer": 0, "head_dim": 8, "scale": 1.0, "window": 0, "softcap": 0.0}
                live.append(attend(g, x, pick(x.width), pick(x.width), **options))
            case "gated":
                live.append(gated(g, x, pick(x.width), "silu"))
            case "add":
                live.append(add(g, x, pick(x.width)))
            case "scale":
                live.append(scale(g, x, 2.0))
            case "softcap":
                live.append(softcap(g, x, 2.0))

    for _ in range(draw(st.integers(0, 12))):
        step()
    live = [select(g, pick())]  # the head sees nothing else of the body
    for _ in range(draw(st.integers(0, 4))):
        step()
    x = pick()
    (logits,) = linear(g, x, [f"{x.width}.{VOCAB}"], [VOCAB])
    if draw(st.booleans()):
        softcap(g, logits, 30.0)
    return g.finish()


@settings(max_examples=300, deadline=None)
@given(programs())
def test_inputs_are_intact_when_they_are_read(program: Program) -> None:
    starts = {Rows.TOKEN: 0, Rows.SELECTED: program.arena_widths[Rows.TOKEN]}
    arena = np.full(sum(program.arena_widths.values()), -1)

    def place(buffer: Buffer) -> slice:
        rows, offset = program.place(buffer)
        assert offset >= 0
        assert offset + buffer.width <= program.arena_widths[rows]
        return slice(starts[rows] + offset, starts[rows] + offset + buffer.width)

    head = program.ops[program.head :]
    for op in (*program.ops[: program.head], *head, *head):  # the head runs once a block of rows
        inside = [b for b in op.inputs if program.offsets[b.id] >= 0]
        for b in inside:
            assert (arena[place(b)] == b.id).all(), f"{op} reads a buffer that was overwritten"
        for b in op.outputs:
            if program.offsets[b.id] < 0:
                continue
            for other in inside:
                apart = place(b).stop <= place(other).start or place(other).stop <= place(b).start
                in_place = place(b) == place(other) and not isinstance(op, Linear | Attention | Select)
                assert apart or in_place, "half-way or unsafe alias"
            arena[place(b)] = b.id
        for b in op.outputs:
            assert program.offsets[b.id] < 0 or (arena[place(b)] == b.id).all(), "two outputs in one place"


@settings(max_examples=100, deadline=None)
@given(programs())
def test_only_logits_are_outside_the_arena(program: Program) -> None:
    outside = {b.id for op in program.ops for b in op.outputs if program.offsets[b.id] < 0}
    assert program.logits.id in outside
    assert {op.x.width for op in program.ops if isinstance(op, Linear) and op.outs[0].id in outside} <= set(WIDTHS)
    assert all(b.width == VOCAB for op in program.ops for b in op.outputs if b.id in outside)
    assert isinstance(program.ops[program.head], Select)


def test_a_chain_of_layers_needs_the_memory_of_one() -> None:
    def width(layers: int) -> int:
        g = Tracer(WEIGHTS, used=set(WEIGHTS))
        x = embed(g, "embd", VOCAB, 16)
        for _ in range(layers):
            (h,) = linear(g, norm(g, x, "norm.16", 1e-5), ["16.64"], [64])
            (x,) = linear(g, h, ["64.16"], [16], residual=x)
        linear(g, select(g, x), [f"16.{VOCAB}"], [VOCAB])
        return sum(g.finish().arena_widths.values())

    assert width(10) == width(2)


def test_kinds_of_rows_do_not_share_places() -> None:
    """The body has two free places of 16 columns when the head begins, but their rows are of tokens."""
    g = Tracer(WEIGHTS, used=set(WEIGHTS))
    x = embed(g, "embd", VOCAB, 16)
    y = add(g, x, linear(g, x, ["16.16"], [16])[0])
    h = norm(g, select(g, linear(g, y, ["16.16"], [16])[0]), "norm.16", 1e-5)
    linear(g, h, [f"16.{VOCAB}"], [VOCAB])
    program = g.finish()
    assert program.arena_widths == {Rows.TOKEN: 32, Rows.SELECTED: 16}
    assert program.place(h) == (Rows.SELECTED, 0)
    assert [op.rows for op in program.ops] == [Rows.TOKEN] * 4 + [Rows.SELECTED] * 3
    assert program.head == 4


def test_types_do_not_share_places() -> None:
    g = Tracer(WEIGHTS, used=set(WEIGHTS))
    x = embed(g, "embd", VOCAB, 16)
    halves = Buffer(len(g.buffers), 16, type=GGMLType.F16)
    g.buffers.append(halves)
    y = scale(g, g.add(Scale(x, halves, 2.0)).out, 2.0)
    linear(g, select(g, y), [f"16.{VOCAB}"], [VOCAB])
    program = g.finish()
    assert len({program.place(buffer) for buffer in (x, halves)}) == 2
    assert program.place(y) == program.place(x)


def test_an_operation_runs_over_one_kind_of_rows() -> None:
    g = Tracer(WEIGHTS)
    x = embed(g, "embd", VOCAB, 16)
    with pytest.raises(AssertionError, match="mixes kinds of rows"):
        add(g, select(g, x), x)


def test_a_vector_may_have_a_second_axis() -> None:
    """As llama.cpp's converter writes the gate of a shared expert."""
    values = np.arange(16, dtype=np.float32)[None].view(np.uint8)
    g = Tracer({"embd": WEIGHTS["embd"], "gate.weight": Weight("gate.weight", GGMLType.F32, (1, 16), values)})
    x = embed(g, "embd", VOCAB, 16)
    linear(g, select(g, shared_gate(g, x, x, "gate.weight")), ["embd"], [VOCAB])
    assert g.finish().weights["gate.weight"].shape == (16,)
    doubled = Weight("gate.weight", GGMLType.F32, (2, 16), values.repeat(2, axis=0))
    with pytest.raises(InputError, match=r"gate\.weight: shape \(2, 16\), wanted \(16,\)"):
        shared_gate(Tracer({"gate.weight": doubled}), x, x, "gate.weight")


def test_weights_are_checked_where_they_are_used() -> None:
    integers = Weight("ints.weight", GGMLType.I32, (16, 16), np.zeros((16, 64), np.uint8))
    g = Tracer({"embd": WEIGHTS["embd"], "ints.weight": integers, "extra.weight": WEIGHTS["norm.16"]})
    x = embed(g, "embd", VOCAB, 16)
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight: tensor missing, wanted one of shape \(16, 16\)"):
        linear(g, x, ["blk.0.attn_q.weight"], [16])
    with pytest.raises(InputError, match=r"embd: shape \(100, 16\), wanted \(99, 16\)"):
        linear(g, x, ["embd"], [99])
    with pytest.raises(InputError, match=r"ints\.weight: I32 is not a type to compute with"):
        linear(g, x, ["ints.weight"], [16])
    linear(g, select(g, x), ["embd"], [VOCAB])
    with pytest.raises(InputError, match=r"no use for: extra\.weight, ints\.weight"):
        g.finish()
