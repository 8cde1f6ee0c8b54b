"""What every operation says about itself, and that others ask it."""

import importlib
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import numpy as np
import pytest

from lltool.engine import operations
from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.cpu.kernels import KERNELS
from lltool.engine.operations.attention import Attention, attend
from lltool.engine.operations.embed import embed
from lltool.engine.operations.linear import Linear, linear
from lltool.engine.operations.observe import Observe
from lltool.engine.operations.select import select
from lltool.engine.program import Buffer, Calls, Cost, Operation, Rows, Tracer
from lltool.engine.reference.context import Context
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.engine.segments import weight_names
from lltool.engine.state import KeyValue
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_cpu import VOCAB, f32_weight, one_sequence, run_all, vector


def find_operations() -> set[type[Operation]]:
    found: set[type[Operation]] = set()
    for folder in operations.__path__:
        for path in Path(folder).glob("*.py"):
            module = importlib.import_module(f"lltool.engine.operations.{path.stem}")
            found |= {item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Operation)}
    return found - {Operation}


def test_the_cpu_executor_has_a_kernel_for_each_operation() -> None:
    found = find_operations()
    assert len(found) >= 11
    assert set(KERNELS) == found
    assert all(is_dataclass(op) and op.__doc__ for op in found)


def test_its_fields_are_what_it_reads_and_writes() -> None:
    x, a, b, r = (Buffer(i, 8) for i in range(4))
    op = Linear(x, (a, b), ("a.weight", "b.weight"), (None, "b.bias"), r)
    assert (op.inputs, op.outputs) == ((x, r), (a, b))
    assert op.weight_shapes == {"a.weight": (8, 8), "b.weight": (8, 8), "b.bias": (8,)}
    selected = Buffer(4, 8, Rows.SELECTED)
    observer = Observe(selected, ("a.weight",))
    assert (observer.inputs, observer.outputs, observer.rows) == ((selected,), (), Rows.SELECTED)
    attention = Attention(x, a, b, r, layer=3, heads=2, kv_heads=1, head_dim=4, scale=1.0, sinks="sinks")
    assert (attention.inputs, attention.outputs) == ((x, a, b), (r,))
    assert weight_names((op, attention)) == ["a.weight", "b.weight", "b.bias", "sinks"]
    assert (op.state, attention.state) == ((), (KeyValue(3, 1, 4, 4),))


@pytest.mark.parametrize(
    ("value_is_key", "entry"),
    [(False, 64 * 2 + 32 // 32 * 34), (True, 64 * 2)],  # f16: 2 bytes; q8_0: 34 bytes for 32 numbers
)
def test_the_cost_of_an_attention_counts_keys_and_values_by_their_own_widths(value_is_key: bool, entry: int) -> None:
    q, k, v, out = Buffer(0, 4 * 64), Buffer(1, 2 * 64), Buffer(2, 2 * 32), Buffer(3, 4 * 32)
    attention = Attention(q, k, k if value_is_key else v, out, layer=0, heads=4, kv_heads=2, head_dim=64, scale=1.0)
    calls = Calls({}, [(10, 2)], GGMLType.F16, GGMLType.Q8_0)  # two tokens, which see 11 and 12 keys
    assert attention.cost(calls, {}) == Cost(12 * 2 * entry, floats=(11 + 12) * 4 * (64 + 32))


@dataclass(frozen=True)
class Negate(Operation):
    """out = -x."""

    in_place = True

    x: Buffer
    out: Buffer

    def reference(self, run: Context) -> None:
        run[self.out] = -run[self.x]


def test_an_operation_of_somebody_else_runs_where_it_has_a_kernel() -> None:
    """Planning, tracing and the reference ask the operation; an executor without a kernel names it."""
    values = np.random.default_rng(0).standard_normal((VOCAB, 16), np.float32)
    g = Tracer({"embed": f32_weight("embed", values)})
    x = select(g, embed(g, "embed", VOCAB, 16))
    g.add(Negate(x, g.like(x)))
    made = g.finish()
    batch = one_sequence(5)
    assert np.array_equal(run_all(ReferenceExecutor(made, 1), batch), -values[batch.tokens])
    with pytest.raises(InputError, match="the cpu executor has no kernel for the operation Negate"):
        CpuExecutor(made, 1, max_batch=8, threads=1)


def test_a_bias_of_keys_is_found_through_the_operations_that_make_them() -> None:
    values = np.ones((VOCAB, 16), np.float32)
    weights = [f32_weight("embed", values), vector("k.bias", np.arange(16, dtype=np.float32))]
    weights += [f32_weight(f"{name}.weight", np.eye(16, dtype=np.float32)) for name in "qkv"]
    g = Tracer({w.name: w for w in weights})
    x = embed(g, "embed", VOCAB, 16)
    q, k, v = linear(g, x, ("q.weight", "k.weight", "v.weight"), (16, 16, 16))
    linear(g, select(g, attend(g, q, k, v, layer=0, head_dim=16, scale=1.0, window=0, softcap=0.0)), ["embed"], [VOCAB])
    made = g.finish()
    assert made.mean_bias(v) is None
    assert np.array_equal(made.mean_bias(k), np.arange(16))  # type: ignore[arg-type]
