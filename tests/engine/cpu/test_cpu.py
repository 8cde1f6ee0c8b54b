"""The native executor, operation by operation, under every instruction set that this machine has."""

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Event, Thread
from time import monotonic
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch
from lltool.engine.cpu.executor import CpuExecutor, _native
from lltool.engine.operations.attention import attend
from lltool.engine.operations.elementwise import add, gated, scale, softcap
from lltool.engine.operations.elementwise import product as multiply_elements
from lltool.engine.operations.embed import embed
from lltool.engine.operations.linear import linear
from lltool.engine.operations.norm import norm
from lltool.engine.operations.rope import rope
from lltool.engine.operations.select import select
from lltool.engine.program import NOT_MULTIPLIED, Buffer, Program, Tracer, Weight
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.quant.codec import decode, encode
from tests.engine.cpu.native_calls import Made, call, function, product, rms

ISAS = _native.available_isas()
TYPES = [type for type in LAYOUT if type not in NOT_MULTIPLIED]
FLOAT_TYPES = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
VOCAB = 40
QKV = ("q.weight", "k.weight", "v.weight")

Array = NDArray[np.float32]


def random_weight(rng: np.random.Generator, name: str, type: GGMLType, rows: int, columns: int) -> Weight:
    """Random bytes of any format, but for blocks whose scale is not finite or makes weights of no use."""
    block, size = LAYOUT[type]
    if type in FLOAT_TYPES:
        data = encode(rng.standard_normal((rows, columns), np.float32), type)
        return Weight(name, type, (rows, columns), data)
    need, blocks = rows * columns // block, np.empty((0, size), np.uint8)
    while len(blocks) < need:
        more = rng.integers(0, 256, (4 * need, size), np.uint8)
        with np.errstate(all="ignore"):
            largest = np.abs(decode(more, type)).max(axis=1)
        blocks = np.concatenate([blocks, more[(largest > 1e-3) & (largest < 1e3)]])
    return Weight(name, type, (rows, columns), blocks[:need].reshape(rows, -1))


def f32_weight(name: str, values: Array) -> Weight:
    return Weight(
        name, GGMLType.F32, values.shape, np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    )


def vector(name: str, values: Array) -> Weight:
    return Weight(name, GGMLType.F32, values.shape, np.ascontiguousarray(values).view(np.uint8).reshape(1, -1))


def program(weights: list[Weight], width: int, build: Callable[[Tracer, Buffer], Buffer]) -> Program:
    """Embeds tokens in rows of `width`, builds on them, and gives what it built as the logits."""
    g = Tracer({w.name: w for w in weights})
    x = build(g, embed(g, "embed", VOCAB, width))
    x = select(g, x)
    scale(g, x, 1.0)
    return g.finish()


def one_sequence(tokens: int, outputs: NDArray[np.int32] | None = None) -> Batch:
    ids = (np.arange(tokens) * 7 % VOCAB).astype(np.int32)
    return Batch(
        tokens=ids,
        positions=np.arange(tokens, dtype=np.int32),
        sequences=np.zeros(tokens, np.int32),
        tables=np.arange(-(-tokens // PAGE), dtype=np.int32)[None],
        outputs=np.arange(tokens, dtype=np.int32) if outputs is None else outputs,
    )


def run_all(executor: CpuExecutor | ReferenceExecutor, batch: Batch) -> Array:
    executor.run(batch)
    step = executor.head_rows
    count = len(batch.outputs)
    return np.concatenate([executor.logits(i, min(count, i + step)).copy() for i in range(0, count, step)])


@pytest.mark.parametrize("isa", ISAS)
def test_linear_shares_an_input_and_adds_a_residual(isa: str) -> None:
    rng = np.random.default_rng(3)
    embed = f32_weight("embed", rng.standard_normal((VOCAB, 96), np.float32))
    weights = [
        embed,
        random_weight(rng, "a.weight", GGMLType.Q8_0, 96, 96),
        random_weight(rng, "b.weight", GGMLType.F16, 96, 96),
        random_weight(rng, "c.weight", GGMLType.Q5_0, 96, 96),
    ]

    def build(g: Tracer, x: Buffer) -> Buffer:
        a, b = linear(g, x, ("a.weight", "b.weight"), (96, 96))
        return linear(g, add(g, a, b), ("c.weight",), (96,), residual=x)[0]

    compare(program(weights, 96, build), one_sequence(20), isa, 2e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_elementwise_operations(isa: str) -> None:
    """A width that is no multiple of any vector."""
    rng = np.random.default_rng(4)
    values = (rng.standard_normal((VOCAB, 90)) * 4).astype(np.float32)
    weights = [f32_weight("embed", values), vector("norm", rng.standard_normal(90, np.float32))]
    weights.append(vector("heads", rng.standard_normal(30, np.float32)))
    weights.append(vector("columns", np.array([1.5], np.float32)))

    def build(g: Tracer, x: Buffer) -> Buffer:
        y = norm(g, x, "columns", 1.0, groups=90)
        y = norm(g, y, "norm", 1e-6)
        y = gated(g, x, y, "silu")
        y = gated(g, y, x, "gelu_tanh")
        y = norm(g, y, "heads", 1e-5, groups=3)
        y = add(g, scale(g, y, 0.3), x)
        y = multiply_elements(g, y, x)
        y = softcap(g, y, 5.0)
        return softcap(g, y, 1e4)  # all but the identity: small arguments keep their digits

    compare(program(weights, 90, build), one_sequence(37), isa, 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_turns_pairs_and_leaves_the_rest(isa: str, interleaved: bool) -> None:
    rng = np.random.default_rng(5)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 48), np.float32))]
    frequencies = tuple(10000.0 ** -(i / 5) for i in range(5))  # of 24: 10 turn, 14 stay

    def build(g: Tracer, x: Buffer) -> Buffer:
        return rope(g, x, 24, frequencies, 1.25, interleaved)

    compare(program(weights, 48, build), one_sequence(38), isa, 1e-6)


def compare(made: Program, batch: Batch, isa: str, tolerance: float) -> None:
    cpu = CpuExecutor(
        made, 4, max_batch=64, threads=2, precision="f32", cache_type_k="f32", cache_type_v="f32", instruction_set=isa
    )
    expected, found = run_all(ReferenceExecutor(made, 4, dtype=np.float64), batch), run_all(cpu, batch)
    assert np.max(np.abs(found - expected)) < tolerance * np.abs(expected).max()


def test_blocks_of_logits_scores_and_copied_pages() -> None:
    """Outputs in any block sizes; scores are log-softmax at the targets; a copied page serves another table."""
    rng = np.random.default_rng(6)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 64), np.float32))]
    weights += [f32_weight(f"{n}.weight", rng.standard_normal((64, 64), np.float32) / 8) for n in "qkv"]

    def build(g: Tracer, x: Buffer) -> Buffer:
        q, k, v = linear(g, x, QKV, (64, 64, 64))
        return attend(g, q, k, v, layer=0, head_dim=32, scale=0.2, window=0, softcap=0.0)

    made = program(weights, 64, build)
    cpu = CpuExecutor(made, 4, max_batch=128, threads=2, precision="f32")
    batch = one_sequence(100)
    cpu.run(batch)
    whole = np.concatenate([cpu.logits(i, min(i + 32, 100)).copy() for i in range(0, 100, 32)])
    assert np.array_equal(cpu.logits(17, 20), whole[17:20])
    assert np.array_equal(cpu.logits(90, 100), whole[90:])
    targets = rng.integers(0, 64, 75).astype(np.int32)
    x = whole[20:95].astype(np.float64)
    expected = x[np.arange(75), targets] - np.log(np.exp(x).sum(axis=1))
    np.testing.assert_allclose(cpu.score(20, targets), expected, atol=1e-5)

    cpu.copy_page(0, 2)
    cpu.copy_page(1, 3)
    last = Batch(
        *(a[-1:] for a in (batch.tokens, batch.positions, batch.sequences)),
        np.array([[2, 3]], np.int32),
        np.zeros(1, np.int32),
    )
    np.testing.assert_allclose(run_all(cpu, last)[0], whole[-1], atol=1e-6)  # one token sums in another order


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokens", VOCAB + 24), ("tokens", -1), ("sequences", 1), ("positions", 64), ("tables", 1), ("outputs", 1)],
)
def test_a_batch_out_of_range_is_refused(field: str, value: int) -> None:
    made = program([f32_weight("embed", np.ones((VOCAB, 64), np.float32))], 64, lambda g, x: x)
    cpu = CpuExecutor(made, 1, max_batch=4, threads=1)
    batch = one_sequence(1)
    arrays = {
        name: np.array(getattr(batch, name)) for name in ("tokens", "positions", "sequences", "tables", "outputs")
    }
    arrays[field][...] = value
    with pytest.raises(ValueError, match="run: "):
        cpu.run(Batch(**arrays))


def test_an_unknown_instruction_set_is_refused() -> None:
    made = program([f32_weight("embed", np.ones((VOCAB, 64), np.float32))], 64, lambda g, x: x)
    with pytest.raises(InputError, match="instruction_set 'mmx', wanted one of"):
        CpuExecutor(made, 1, max_batch=4, threads=1, instruction_set="mmx")


def test_threads_that_the_system_refuses_are_an_error() -> None:
    """Not the end of the process: there is room for the stacks of some of them."""
    code = """
import resource
import numpy
from lltool.engine.cpu import _native
memory = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (memory + (1 << 28),) * 2)
session = _native.Executor(isa="scalar", decode=[[]] * 1000, batch=[[]], poll=0, max_batch=1, head_rows=1,
                           arena_width=16, vocabulary=16, pages=1, slots=0, int8=True, k_type=1, v_type=1,
                           deterministic=False)
session.embed(out=(0, 16), type=0, data=numpy.zeros((1, 64), numpy.uint8), scale=1.0)
session.select(x=(0, 16), out=(-1, 16))
try:
    session.finish()
except RuntimeError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"the system starts no more than \d+ of 1000 threads\n", run.stdout)


def an_attention(v: int = 32, kv_heads: int = 1, **extra: Array) -> dict[str, Any]:
    places = {"q": (0, 64), "k": (64, 32), "v": (96, v), "out": (128, 64)}
    return {**places, "layer": 0, "heads": 2, "kv_heads": kv_heads, "head_dim": 32, "scale": 1.0, **extra}


def a_linear(x: int, rows: int, bias: Array | None = None, **extra: Any) -> dict[str, Any]:
    """A linear on (0, x) with a matrix of 40 rows of 64 float32."""
    return {"x": (0, x), "groups": [[product((64, rows), 0, MATRIX, bias)]], **extra}


def a_function(made: Made, y: tuple[int, int] | None = None, **changes: Any) -> dict[str, Any]:
    return {"function": replace(made, named=made.named | changes), "x": (0, 64), "y": y, "out": (0, 64)}


MATRIX = np.zeros((VOCAB, 256), np.uint8)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("embed", {"out": (0, 32), "type": 0, "data": MATRIX, "scale": 1.0}),
        ("embed", {"out": (0, 64), "type": 9, "data": MATRIX, "scale": 1.0}),  # Q8_1: no kernel
        ("linear", a_linear(32, 40)),
        ("linear", a_linear(64, 41)),
        ("linear", a_linear(64, 40, np.ones(39, np.float32))),
        ("linear", a_linear(64, 40, np.ones(40, np.float32), residual=(64, 64))),
        ("linear", a_linear(64, 40, np.ones(40, np.float32), norm=rms(40))),
        ("function", a_function(rms(32), unit=64)),
        ("function", a_function(rms(48), unit=48)),  # does not divide the row
        ("function", a_function(rms(64), vector=None)),
        ("function", a_function(rms(64), y=(64, 64))),
        ("function", a_function(function("scale"), vector=np.ones(64, np.float32))),
        ("function", a_function(function("scale"), unit=64)),
        (
            "rope",
            {
                "x": (0, 64),
                "out": (0, 64),
                "head_dim": 32,
                "frequencies": [1.0] * 17,
                "magnitude": 1.0,
                "interleaved": False,
            },
        ),
        ("attention", an_attention(kv_heads=0)),
        ("attention", an_attention(v=64)),
        ("attention", an_attention(sinks=np.ones(3, np.float32))),
        ("attention", an_attention(slopes=np.ones(3, np.float32))),
        ("attention", an_attention(common_key=np.ones(31, np.float32))),
        ("function", {"function": function("add"), "x": (0, 64), "y": (64, 32), "out": (96, 64)}),
        ("function", {"function": function("add"), "x": (0, 64), "y": (64, 64), "out": (96, 64), "group": 0}),
    ],
)
def test_operations_whose_shapes_do_not_agree_are_refused(name: str, named: dict[str, Any]) -> None:
    executor = _native.Executor(
        isa="scalar",
        decode=[[]],
        batch=[[]],
        poll=0,
        max_batch=1,
        head_rows=1,
        arena_width=256,
        vocabulary=40,
        pages=1,
        slots=0,
        int8=True,
        k_type=1,
        v_type=1,
        deterministic=False,
    )
    wanted = (
        r"shapes do not agree|whole groups|a (sink|slope) for each head|a common key of all heads"
        r"|\d+ weights in 256 bytes"
        r"|without a linear|no native format"
    )
    with pytest.raises(ValueError, match=wanted):
        call(executor, name, [], named)


def test_threads_share_the_work_and_agree() -> None:
    """More threads than cores, many short runs: nothing hangs, nothing differs."""
    rng = np.random.default_rng(7)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 64), np.float32))]
    weights.append(random_weight(rng, "w.weight", GGMLType.Q4_K, 96, 256))
    weights.append(random_weight(rng, "up.weight", GGMLType.Q8_0, 256, 64))

    def build(g: Tracer, x: Buffer) -> Buffer:
        return linear(g, linear(g, x, ("up.weight",), (256,))[0], ("w.weight",), (96,))[0]

    made = program(weights, 64, build)
    one, many = (CpuExecutor(made, 1, max_batch=64, threads=n) for n in (1, 5))
    for i in range(60):
        batch = one_sequence(1 + i % 40)
        assert np.array_equal(run_all(one, batch), run_all(many, batch))


def test_times_are_of_each_operation_since_the_last_call() -> None:
    rng = np.random.default_rng(9)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 64), np.float32))]
    weights.append(random_weight(rng, "w.weight", GGMLType.Q8_0, 96, 64))
    made = program(weights, 64, lambda g, x: linear(g, x, ("w.weight",), (96,))[0])
    cpu = CpuExecutor(made, 1, max_batch=64, threads=2)
    cpu.run(one_sequence(20))
    assert all(seconds == 0 for _, seconds in cpu.take_times())  # nobody had asked yet
    start = monotonic()
    cpu.run(one_sequence(20))
    run_seconds, times = monotonic() - start, cpu.take_times()
    assert [op for ops, _ in times for op in ops] == list(made.ops)
    assert 0 < sum(seconds for _, seconds in times) <= run_seconds
    assert all(seconds == 0 for _, seconds in cpu.take_times())


def test_a_second_thread_is_refused_while_one_runs() -> None:
    rng = np.random.default_rng(8)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 512), np.float32))]
    weights.append(random_weight(rng, "w.weight", GGMLType.F32, 2048, 512))
    made = program(weights, 512, lambda g, x: linear(g, x, ("w.weight",), (2048,))[0])
    cpu = CpuExecutor(made, 1, max_batch=64, threads=1)
    batch, refused = one_sequence(64), Event()

    def run() -> None:
        deadline = monotonic() + 20
        while not refused.is_set() and monotonic() < deadline:
            with suppress(RuntimeError):
                cpu.run(batch)

    def disturb() -> None:
        while other.is_alive():
            cpu.copy_page(0, 0)

    other = Thread(target=run)
    other.start()
    try:
        with pytest.raises(RuntimeError, match="the executor is running in another thread"):
            disturb()
    finally:
        refused.set()
        other.join()
