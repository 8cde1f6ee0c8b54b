"""Operations that run as one give, bit for bit, what they give one by one."""

from dataclasses import replace

import numpy as np
import pytest

from lltool.engine.batch import Precision
from lltool.engine.cpu import executor as cpu
from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.cpu.fuse import FusedOps, fuse
from lltool.engine.operations.attention import Attention, attend
from lltool.engine.operations.elementwise import Add, Gated, Scale, add, gated
from lltool.engine.operations.embed import Embed
from lltool.engine.operations.linear import Linear, linear
from lltool.engine.operations.norm import Norm, norm
from lltool.engine.operations.observe import observe_linears
from lltool.engine.operations.rope import Rope, rope
from lltool.engine.operations.select import Select
from lltool.engine.program import Buffer, Operation, Program, Rows, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_cpu import (
    ISAS,
    QKV,
    VOCAB,
    Array,
    f32_weight,
    one_sequence,
    program,
    random_weight,
    run_all,
    vector,
)

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FF = 96, 4, 2, 48, 160


def make_layer(post_norms: bool = False) -> Program:
    """One layer with everything: biases, norms of heads, residuals, and types that are multiplied as floats."""
    rng = np.random.default_rng(1)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, WIDTH), np.float32))]
    for name, type, rows, columns in (
        ("q", GGMLType.Q8_0, q, WIDTH),
        ("k", GGMLType.F16, kv, WIDTH),
        ("v", GGMLType.Q4_0, kv, WIDTH),
        ("o", GGMLType.Q5_0, WIDTH, q),
        ("gate", GGMLType.Q8_0, FF, WIDTH),
        ("up", GGMLType.Q5_1, FF, WIDTH),
        ("down", GGMLType.Q8_0, WIDTH, FF),
    ):
        weights.append(random_weight(rng, f"{name}.weight", type, rows, columns))
        if name in "qkup":
            weights.append(vector(f"{name}.bias", rng.standard_normal(rows, np.float32)))
    for name, size in (("norm", WIDTH), ("heads", HEAD_DIM), ("after", WIDTH)):
        weights.append(vector(name, rng.standard_normal(size, np.float32)))

    def build(g: Tracer, x: Buffer) -> Buffer:
        q, k, v = linear(g, norm(g, x, "norm", 1e-5), QKV, (HEADS * HEAD_DIM, kv, kv))
        q = rope(g, norm(g, q, "heads", 1e-5, groups=HEADS), HEAD_DIM, (1.0, 0.1, 0.02), 1.5, True)
        k = rope(g, norm(g, k, "heads", 1e-5, groups=KV_HEADS), HEAD_DIM, (1.0, 0.1, 0.02), 1.5, True)
        h = attend(g, q, k, v, layer=0, head_dim=HEAD_DIM, scale=0.2, window=0, softcap=0.0)
        x = linear(g, h, ("o.weight",), (WIDTH,), x)[0]
        gate, up = linear(g, norm(g, x, "norm", 1e-5), ("gate.weight", "up.weight"), (FF, FF))
        h = gated(g, gate, up, "gelu_tanh")
        if post_norms:
            h = linear(g, h, ("down.weight",), (WIDTH,))[0]
            return add(g, x, norm(g, h, "after", 1e-5))
        return linear(g, h, ("down.weight",), (WIDTH,), x)[0]

    if not post_norms:
        weights = [w for w in weights if w.name != "after"]
    return program(weights, WIDTH, build)


def one_by_one(program: Program) -> list[FusedOps]:
    parts = {op: tuple((i,) for i in range(len(op.outs))) for op in program.ops if isinstance(op, Linear)}
    return [FusedOps(op, groups=parts.get(op, ()) if isinstance(op, Linear) else ()) for op in program.ops]


def test_a_layer_is_five_steps() -> None:
    made = make_layer()
    steps = fuse(made)
    assert [op for step in steps for op in step.ops] == list(made.ops)
    assert [type(step.op) for step in steps] == [Embed, Linear, Attention, Linear, Linear, Linear, Select, Scale]
    qkv, attention, out, mlp = steps[1:5]
    assert isinstance(qkv.norm, Norm)
    assert [(type(op), group) for op, group in qkv.after] == [(Norm, 0), (Rope, 0), (Norm, 1), (Rope, 1)]
    assert qkv.groups == ((0,), (1,), (2,))
    assert attention.stores == (1, 2)
    assert (out.norm, out.groups, out.after) == (None, ((0,),), ())
    assert mlp.norm is not None
    assert mlp.groups == ((0, 1),)
    assert [group for _, group in mlp.after] == [0]


def test_a_norm_that_others_read_is_made() -> None:
    weights = [
        f32_weight("embed", np.ones((VOCAB, 64), np.float32)),
        f32_weight("w.weight", np.eye(64, dtype=np.float32)),
    ]
    weights.append(vector("norm", np.ones(64, np.float32)))

    def build(g: Tracer, x: Buffer) -> Buffer:
        n = norm(g, x, "norm", 1e-5)
        return add(g, linear(g, n, ("w.weight",), (64,))[0], n)

    steps = fuse(program(weights, 64, build))
    assert [type(step.op) for step in steps] == [Embed, Norm, Linear, Add, Select, Scale]
    assert steps[2].after == ()  # the sum takes the place of what the linear reads


def test_places_that_another_group_uses_are_left_alone() -> None:
    """With k's rotary in the place of v, a thread that is ahead would write what another has yet to read."""
    made = make_layer()
    qkv = next(op for op in made.ops if isinstance(op, Linear))
    rope = [op for op in made.ops if isinstance(op, Rope)][1]
    offsets = list(made.offsets)
    offsets[rope.out.id] = offsets[qkv.outs[2].id]
    steps = fuse(replace(made, offsets=tuple(offsets)))
    assert rope in [step.op for step in steps]
    assert all(step.stores == (-1, -1) for step in steps)


def plan(*ops: Operation, offsets: tuple[int, ...]) -> list[FusedOps]:
    """Fuses a constructed program: buffer i lies at offsets[i], and buffers with one offset share a place."""
    return fuse(Program(ops, {}, offsets, {Rows.TOKEN: 1000}, Buffer(len(offsets), 16)))


def a_linear(x: Buffer, *outs: Buffer, residual: Buffer | None = None) -> Linear:
    return Linear(x, outs, tuple(f"w{out.id}" for out in outs), (None,) * len(outs), residual)


def steps_of(steps: list[FusedOps]) -> list[tuple[Operation, ...]]:
    return [step.ops for step in steps]


def test_a_norm_is_not_fused_where_an_output_takes_its_inputs_place() -> None:
    """Each thread makes the norm for itself, of a place that another has overwritten by then."""
    x, n, y = (Buffer(i, 16) for i in range(3))
    norm, linear = Norm(x, n, "norm", 1e-5), a_linear(n, y)
    assert steps_of(plan(norm, linear, offsets=(0, 16, 32))) == [(norm, linear)]
    assert steps_of(plan(norm, linear, offsets=(0, 16, 0))) == [(norm,), (linear,)]


def test_a_norm_is_fused_with_the_linear_that_reads_it_and_no_other() -> None:
    x, n, other, y, z = (Buffer(i, 16) for i in range(5))
    norm, linear, reader = Norm(x, n, "norm", 1e-5), a_linear(other, y), a_linear(n, z)
    assert steps_of(plan(norm, linear, reader, offsets=(0, 16, 32, 48, 64))) == [(norm,), (linear,), (reader,)]


def test_columns_do_not_go_where_a_fused_norm_is_made_of() -> None:
    """With the norm fused, the linear reads the norm's input: a thread that is behind has yet to."""
    x, n, y, z = (Buffer(i, 16) for i in range(4))
    norm, linear, scale = Norm(x, n, "norm", 1e-5), a_linear(n, y), Scale(y, z, 2.0)
    assert steps_of(plan(norm, linear, scale, offsets=(0, 16, 32, 16))) == [(norm, linear, scale)]
    assert steps_of(plan(norm, linear, scale, offsets=(0, 16, 32, 0))) == [(norm, linear), (scale,)]


def test_columns_do_not_go_where_another_group_reads_the_residual() -> None:
    x, r, y, z, out = (Buffer(i, 16) for i in range(5))
    linear, scale = a_linear(x, y, z, residual=r), Scale(y, out, 2.0)
    assert steps_of(plan(linear, scale, offsets=(0, 16, 32, 48, 64))) == [(linear, scale)]
    assert steps_of(plan(linear, scale, offsets=(0, 16, 32, 48, 16))) == [(linear,), (scale,)]


@pytest.mark.parametrize("place", [48, 64, 80], ids=["an output of it", "what it read", "what it made"])
def test_columns_do_not_go_where_another_group_was(place: int) -> None:
    """Of what a group has taken in, everything is its own: the other's outputs, what was read and what was made."""
    x, a, b, c, old, made, out = (Buffer(i, 16) for i in range(7))
    linear, both, more = a_linear(x, a, b, c), Gated(a, b, a, "silu"), Add(a, old, made)
    last = Scale(c, out, 2.0)
    apart = (0, 32, 48, 96, 64, 80, 112)
    assert steps_of(plan(linear, both, more, last, offsets=apart)) == [(linear, both, more, last)]
    assert steps_of(plan(linear, both, more, last, offsets=(*apart[:-1], place))) == [(linear, both, more), (last,)]


@pytest.mark.parametrize("place", [48, 64], ids=["its output", "what it read"])
def test_a_group_that_is_taken_in_brings_what_it_used(place: int) -> None:
    x, a, b, c, old, moved, out, last_out = (Buffer(i, 16) for i in range(8))
    linear, before, both = a_linear(x, a, b, c), Add(b, old, moved), Gated(a, moved, out, "silu")
    last = Scale(c, last_out, 2.0)
    apart = (0, 32, 48, 96, 64, 80, 128, 112)
    assert steps_of(plan(linear, before, both, last, offsets=apart)) == [(linear, before, both, last)]
    assert steps_of(plan(linear, before, both, last, offsets=(*apart[:-1], place))) == [(linear, before, both), (last,)]


def test_what_needs_no_column_of_the_linear_is_not_fused() -> None:
    x, y, other, out = (Buffer(i, 16) for i in range(4))
    linear, scale = a_linear(x, y), Scale(other, out, 2.0)
    assert steps_of(plan(linear, scale, offsets=(0, 16, 32, 48))) == [(linear,), (scale,)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", ["int8", "f32"])
@pytest.mark.parametrize("post_norms", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_steps_are_their_operations(
    isa: str, precision: Precision, post_norms: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_layer(post_norms)

    def run(threads: int) -> list[Array]:
        executor = CpuExecutor(made, 1, max_batch=40, threads=threads, precision=precision, instruction_set=isa)
        return [run_all(executor, one_sequence(tokens)) for tokens in (1, 2, 7, 8, 33)]

    found = run(threads)
    monkeypatch.setattr(cpu, "fuse", one_by_one)
    for fused, single in zip(found, run(1), strict=True):
        assert np.array_equal(fused, single)


@pytest.mark.parametrize("isa", ISAS)
def test_steps_mean_what_the_reference_says(isa: str) -> None:
    made = make_layer()
    executor = CpuExecutor(
        made, 1, max_batch=40, threads=2, precision="f32", cache_type_k="f32", cache_type_v="f32", instruction_set=isa
    )
    reference = ReferenceExecutor(made, 1, dtype=np.float64)
    for tokens in (1, 2, 7, 8, 33):
        expected = run_all(reference, one_sequence(tokens))
        error = np.abs(run_all(executor, one_sequence(tokens)) - expected)
        assert np.max(error) < 1e-5 * np.abs(expected).max()


def test_observers_see_what_is_multiplied() -> None:
    """An observed norm is made; nothing else changes."""
    made = make_layer()
    observed = observe_linears(made, lambda name: True)
    batch = one_sequence(33)
    plain = run_all(CpuExecutor(made, 1, max_batch=40, threads=2), batch)
    executor = CpuExecutor(
        observed, 1, max_batch=40, threads=2, precision="f32", cache_type_k="f32", cache_type_v="f32"
    )
    reference = ReferenceExecutor(observed, 1)
    run_all(executor, batch), run_all(reference, batch)
    seen = executor.take_observations()
    for name, expected in reference.take_observations().items():
        assert seen[name].rows.tolist() == expected.rows.tolist()
        np.testing.assert_allclose(seen[name].sums, expected.sums, rtol=1e-3)
    assert np.array_equal(run_all(CpuExecutor(observed, 1, max_batch=40, threads=2), batch), plain)
