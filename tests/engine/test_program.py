"""The arena plan: whatever the operations, no buffer is overwritten while somebody still needs it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lltool.engine.program import (
    Attention,
    Buffer,
    Linear,
    Program,
    Select,
    Tracer,
    Weight,
    inputs,
    outputs,
)
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType

WIDTHS = (16, 24, 64)
VOCAB = 100


def weight(name: str, *shape: int) -> Weight:
    return Weight(name, GGMLType.F32, shape, np.zeros((int(np.prod(shape[:-1])), shape[-1] * 4), np.uint8))


WEIGHTS = {
    "embd": weight("embd", VOCAB, WIDTHS[0]),
    **{f"norm.{n}": weight(f"norm.{n}", n) for n in WIDTHS},
    **{f"{a}.{b}": weight(f"{a}.{b}", b, a) for a in WIDTHS for b in (*WIDTHS, VOCAB)},
}


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A random graph: any buffer so far may be read again, some are never read."""
    g = Tracer(WEIGHTS, used=set(WEIGHTS))
    live = [g.embed("embd", VOCAB, WIDTHS[0])]

    def pick(width: int | None = None) -> Buffer:
        return draw(st.sampled_from([b for b in live if width is None or b.width == width]))

    def step() -> None:
        x = pick()
        match draw(st.sampled_from(["norm", "linear", "rope", "attention", "gated", "add", "scale", "softcap"])):
            case "norm":
                live.append(g.norm(x, f"norm.{x.width}", 1e-5))
            case "linear":
                widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=3))
                same = [b for b in live if b.width == widths[0]]
                residual = draw(st.sampled_from([None, *same])) if len(widths) == 1 else None
                live.extend(g.linear(x, [f"{x.width}.{width}" for width in widths], widths, residual))
            case "rope":
                live.append(g.rope(x, 8, (1.0, 0.5), 1.0, False))
            case "attention":
                options = {"layer": 0, "head_dim": 8, "scale": 1.0, "window": 0, "softcap": 0.0}
                live.append(g.attention(x, pick(x.width), pick(x.width), **options))
            case "gated":
                live.append(g.gated(x, pick(x.width), "silu"))
            case "add":
                live.append(g.add(x, pick(x.width)))
            case "scale":
                live.append(g.scale(x, 2.0))
            case "softcap":
                live.append(g.softcap(x, 2.0))

    for _ in range(draw(st.integers(0, 12))):
        step()
    live = [g.select(pick())]  # the head sees nothing else of the body
    for _ in range(draw(st.integers(0, 4))):
        step()
    x = pick()
    (logits,) = g.linear(x, [f"{x.width}.{VOCAB}"], [VOCAB])
    if draw(st.booleans()):
        g.softcap(logits, 30.0)
    return g.finish()


@settings(max_examples=300, deadline=None)
@given(programs())
def test_inputs_are_intact_when_they_are_read(program: Program) -> None:
    arena = np.full(program.arena_width, -1)

    def place(buffer: Buffer) -> slice:
        offset = program.offsets[buffer.id]
        assert offset >= 0
        assert offset + buffer.width <= program.arena_width
        return slice(offset, offset + buffer.width)

    head = program.ops[program.head :]
    for op in (*program.ops[: program.head], *head, *head):  # the head runs once a block of rows
        inside = [b for b in inputs(op) if program.offsets[b.id] >= 0]
        for b in inside:
            assert (arena[place(b)] == b.id).all(), f"{op} reads a buffer that was overwritten"
        for b in outputs(op):
            if program.offsets[b.id] < 0:
                continue
            for other in inside:
                apart = place(b).stop <= place(other).start or place(other).stop <= place(b).start
                in_place = place(b) == place(other) and not isinstance(op, Linear | Attention | Select)
                assert apart or in_place, "half-way or unsafe alias"
            arena[place(b)] = b.id
        for b in outputs(op):
            assert program.offsets[b.id] < 0 or (arena[place(b)] == b.id).all(), "two outputs in one place"


@settings(max_examples=100, deadline=None)
@given(programs())
def test_only_logits_are_outside_the_arena(program: Program) -> None:
    outside = {b.id for op in program.ops for b in outputs(op) if program.offsets[b.id] < 0}
    assert program.logits.id in outside
    assert {op.x.width for op in program.ops if isinstance(op, Linear) and op.outs[0].id in outside} <= set(WIDTHS)
    assert all(b.width == VOCAB for op in program.ops for b in outputs(op) if b.id in outside)
    assert isinstance(program.ops[program.head], Select)


def test_a_chain_of_layers_needs_the_memory_of_one() -> None:
    def width(layers: int) -> int:
        g = Tracer(WEIGHTS, used=set(WEIGHTS))
        x = g.embed("embd", VOCAB, 16)
        for _ in range(layers):
            (h,) = g.linear(g.norm(x, "norm.16", 1e-5), ["16.64"], [64])
            (x,) = g.linear(h, ["64.16"], [16], residual=x)
        g.linear(g.select(x), [f"16.{VOCAB}"], [VOCAB])
        return g.finish().arena_width

    assert width(10) == width(2)


def test_weights_are_checked_where_they_are_used() -> None:
    integers = Weight("ints.weight", GGMLType.I32, (16, 16), np.zeros((16, 64), np.uint8))
    g = Tracer({"embd": WEIGHTS["embd"], "ints.weight": integers, "extra.weight": WEIGHTS["norm.16"]})
    x = g.embed("embd", VOCAB, 16)
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight: tensor missing, wanted one of shape \(16, 16\)"):
        g.linear(x, ["blk.0.attn_q.weight"], [16])
    with pytest.raises(InputError, match=r"embd: shape \(100, 16\), wanted \(99, 16\)"):
        g.linear(x, ["embd"], [99])
    with pytest.raises(InputError, match=r"ints\.weight: I32 is not a type to compute with"):
        g.linear(x, ["ints.weight"], [16])
    g.linear(g.select(x), ["embd"], [VOCAB])
    with pytest.raises(InputError, match=r"no use for: extra\.weight, ints\.weight"):
        g.finish()
