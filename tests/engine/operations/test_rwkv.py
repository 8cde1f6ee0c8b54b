"""The token shift and the time mixing of RWKV 7, under every instruction set.

What they compute together is compared with the formulas of tests/rwkv7_checkpoint.py in test_architectures.py.
"""

from typing import Any

import numpy as np
import pytest

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.elementwise import activate, add, add_vector
from lltool.engine.operations.linear import linear
from lltool.engine.operations.rwkv import TimeMix, time_mix, token_shift
from lltool.engine.program import Buffer, Calls, Cost, Program, Rows, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_cpu import ISAS, VOCAB, f32_weight, program, vector
from tests.engine.operations.test_recurrent import CUTS, WHOLE, compare, run_cuts


def mixing(heads: int, dim: int, *, is_first: bool = False) -> Program:
    """Gives both results of time mixing of random rows, which were shifted, as a sum with a vector."""
    rng, width = np.random.default_rng(4), heads * dim
    weights = [
        f32_weight("embed", rng.standard_normal((VOCAB, width), np.float32)),
        f32_weight("lerp", rng.random((7, width), np.float32)),
        f32_weight("key.weight", rng.standard_normal((width, width), np.float32) / width**0.5),
        *(vector(name, rng.standard_normal(width, np.float32)) for name in ("k_k", "k_a", "r_k", "added")),
    ]

    def build(g: Tracer, x: Buffer) -> Buffer:
        r, w, k, v, a, first, mix = token_shift(g, x, "lerp", 7)
        (k,) = linear(g, k, ["key.weight"], [width])
        values = None if is_first else (first, mix)
        out, bonus = time_mix(g, r, w, k, v, a, values, weights=("k_k", "k_a", "r_k"), heads=heads)
        return add(g, add_vector(g, activate(g, out, "sigmoid"), "added"), bonus)

    return program(weights, width, build)


MIXINGS = [mixing(2, 64), mixing(3, 20), mixing(1, 7, is_first=True), mixing(5, 1)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("made", MIXINGS)
def test_the_native_kernels(made: Program, isa: str) -> None:
    compare(made, isa, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_a_token_has_the_same_bits_in_every_batch(isa: str) -> None:
    settings: dict[str, Any] = {"slots": 5, "max_batch": 128, "precision": "f32", "deterministic": True}
    executor = CpuExecutor(mixing(3, 20), 3, threads=2, instruction_set=isa, **settings)
    for cut, whole in zip(run_cuts(executor, CUTS), run_cuts(executor, WHOLE), strict=True):
        np.testing.assert_array_equal(cut, whole)


def test_a_shift_by_hand() -> None:
    """Half of the way to the row before; before a text there are zeros."""
    rows = np.arange(VOCAB * 2, dtype=np.float32).reshape(VOCAB, 2)
    weights = [f32_weight("embed", rows), f32_weight("lerp", np.full((1, 2), 0.5, np.float32))]
    made = program(weights, 2, lambda g, x: token_shift(g, x, "lerp", 1)[0])
    whole = run_cuts(ReferenceExecutor(made, 3, slots=5), WHOLE)
    ids = np.random.default_rng(8).integers(0, VOCAB, (3, 64))
    for found, text in zip(whole, ids, strict=True):
        texts = rows[text[: len(found)]]
        np.testing.assert_array_equal(found[0], texts[0] / 2)
        np.testing.assert_array_equal(found[1:], (texts[1:] + texts[:-1]) / 2)


def test_its_cost_and_state() -> None:
    (op,) = (op for op in mixing(2, 16).ops if isinstance(op, TimeMix))
    (slot,) = op.state
    assert (slot.name, slot.shape) == ("r_k", (2, 16, 16))
    calls = Calls({Rows.TOKEN: [5, 2]}, [(0, 3), (7, 2), (9, 2)], GGMLType.F16, GGMLType.F16)
    assert op.cost(calls, {}) == Cost(3 * 2 * 16 * 16 * 4, floats=7 * 4 * 2 * 16 * 16)


def test_heads_that_the_kernel_does_not_take() -> None:
    with pytest.raises(InputError, match="heads of 260; the kernel takes at most 256"):
        CpuExecutor(mixing(1, 260), 1, slots=1, max_batch=8, threads=1)
