"""Observers: sums of squares of what linears read, against numpy, on both executors; and nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch, Precision
from lltool.engine.cpu.executor import CpuExecutor, _native
from lltool.engine.model import load_model
from lltool.engine.operations.elementwise import gated
from lltool.engine.operations.embed import embed
from lltool.engine.operations.linear import Linear, linear
from lltool.engine.operations.observe import Observe, observe_linears
from lltool.engine.operations.select import select
from lltool.engine.program import Program, Tracer, Weight
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.ggml_types import GGMLType

VOCAB, WIDTH, HIDDEN = 40, 160, 96  # widths that fill no whole number of the kernel's tasks


def matrix(rng: np.random.Generator, name: str, rows: int, columns: int) -> Weight:
    values = rng.standard_normal((rows, columns), np.float32) / np.sqrt(columns, dtype=np.float32)
    return Weight(name, GGMLType.F32, (rows, columns), values.view(np.uint8))


def two_layers() -> tuple[Program, dict[str, NDArray[np.float32]]]:
    """embed, an up and a gate matrix that share their input, their product through down, and a head."""
    rng = np.random.default_rng(3)
    weights = [
        matrix(rng, "embed", VOCAB, WIDTH),
        matrix(rng, "gate.weight", HIDDEN, WIDTH),
        matrix(rng, "up.weight", HIDDEN, WIDTH),
        matrix(rng, "down.weight", WIDTH, HIDDEN),
        matrix(rng, "output.weight", VOCAB, WIDTH),
    ]
    g = Tracer({w.name: w for w in weights})
    x = embed(g, "embed", VOCAB, WIDTH)
    gate, up = linear(g, x, ("gate.weight", "up.weight"), (HIDDEN, HIDDEN))
    x = linear(g, gated(g, gate, up, "silu"), ("down.weight",), (WIDTH,), x)[0]
    linear(g, select(g, x), ("output.weight",), (VOCAB,))
    return g.finish(), {w.name: w.data.view(np.float32) for w in weights}


def make_batch(tokens: int, outputs: int) -> Batch:
    return Batch(
        tokens=(np.arange(tokens) * 7 % VOCAB).astype(np.int32),
        positions=np.arange(tokens, dtype=np.int32),
        sequences=np.zeros(tokens, np.int32),
        tables=np.arange(-(-tokens // PAGE), dtype=np.int32)[None],
        outputs=np.arange(outputs, dtype=np.int32),
    )


def inputs_by_hand(batch: Batch, w: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
    x = w["embed"][batch.tokens].astype(np.float64)
    gate = x @ w["gate.weight"].T
    hidden = gate / (1 + np.exp(-gate)) * (x @ w["up.weight"].T)
    last = x + hidden @ w["down.weight"].T
    return {"gate.weight": x, "up.weight": x, "down.weight": hidden, "output.weight": last[batch.outputs]}


def make_executor(kind: str, program: Program, threads: int = 2) -> Any:
    if kind == "reference":
        return ReferenceExecutor(program, 4)
    return CpuExecutor(program, 4, max_batch=200, threads=threads, precision="f32", instruction_set=kind)


@pytest.mark.parametrize("kind", ["reference", *_native.available_isas()])
def test_sums_are_those_of_the_inputs(kind: str) -> None:
    """One token, a few, and more than the kernel sums in float; sums go on until they are taken."""
    program, weights = two_layers()
    executor = make_executor(kind, observe_linears(program, lambda _: True))
    expected = {name: np.zeros(weights[name].shape[1]) for name in weights if name != "embed"}
    rows = dict.fromkeys(expected, 0)
    for tokens, outputs in ((1, 1), (5, 2), (200, 20)):
        batch = make_batch(tokens, outputs)
        executor.run(batch)
        executor.logits(0, outputs)
        for name, x in inputs_by_hand(batch, weights).items():
            expected[name] += np.square(x).sum(axis=0)
            rows[name] += len(x)
    seen = executor.take_observations()
    assert seen.keys() == expected.keys()
    for name, values in expected.items():
        assert seen[name].rows.tolist() == [rows[name]]
        assert rows[name] == (206 if name != "output.weight" else 23)
        # Inputs are sums of up to 160 products of float32, then up to 64 squares are summed in float32.
        np.testing.assert_allclose(seen[name].sums[0], values, rtol=1e-5, err_msg=name)
    executor.run(make_batch(1, 0))
    assert executor.take_observations()["down.weight"].rows.tolist() == [1]


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    program, _ = two_layers()
    taken = []
    for threads in (1, 3):
        executor = make_executor(_native.available_isas()[0], observe_linears(program, lambda _: True), threads)
        executor.run(make_batch(200, 0))
        taken.append(executor.take_observations())
    for name in taken[0]:
        assert np.array_equal(taken[0][name].sums, taken[1][name].sums), name


def test_only_chosen_linears_are_observed() -> None:
    program, _ = two_layers()
    assert observe_linears(program, lambda _: False) == program
    assert not any(isinstance(op, Observe) for op in program.ops)
    observed = observe_linears(program, lambda name: name in ("up.weight", "output.weight"))
    places = [index for index, op in enumerate(observed.ops) if isinstance(op, Observe)]
    assert [observed.ops[i] for i in places] == [
        Observe(op.x, (name,))
        for op in program.ops
        if isinstance(op, Linear)
        for name in op.weights
        if name in ("up.weight", "output.weight")
    ]
    assert places[0] < observed.head < places[1]  # the last one belongs to the head
    assert observed.ops[observed.head] == program.ops[program.head]


@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_observed_model_gives_the_same_logits(real_model: Callable[[str], Path], precision: Precision) -> None:
    logits = []
    for observe in (None, lambda name: name.startswith("blk.")):
        path = real_model("smollm2-q4_1")
        with load_model(path, context=64, batch=64, precision=precision, observe=observe) as model:
            logits.append(model.evaluate(model.new_sequence(), list(range(100, 140))))
            seen = model.executor.take_observations()
    assert np.array_equal(*logits)
    assert len(seen) == 30 * 7
    assert seen["blk.0.attn_q.weight"] is seen["blk.0.attn_v.weight"]
