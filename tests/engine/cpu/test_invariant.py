"""With `deterministic`, a linear gives a token the same bits in a batch of any size, in every format."""

import numpy as np
import pytest

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.linear import linear
from lltool.engine.program import Buffer, Tracer
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from tests.engine.cpu.test_cpu import ISAS, TYPES, VOCAB, f32_weight, one_sequence, program, random_weight, run_all

SIZES = (1, 2, 3, 4, 5, 8, 13, 16, 17, 64)
ROWS = 43  # no multiple of the lanes of any vector


def columns_of(type: GGMLType) -> tuple[int, ...]:
    """Widths of one block, and of several with and without a part of a vector's steps."""
    block = LAYOUT[type][0]
    return (32, 96, 576, 608) if block <= 32 else (block, 3 * block)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_a_token_has_the_same_bits_in_any_batch(type: GGMLType, isa: str) -> None:
    rng = np.random.default_rng(int(type))
    for columns in columns_of(type):
        values = rng.standard_normal((VOCAB, columns), np.float32)
        values[rng.random(values.shape) < 0.01] *= 40.0  # outliers
        weights = [f32_weight("embed", values), random_weight(rng, "a.weight", type, ROWS, columns)]

        def build(g: Tracer, x: Buffer) -> Buffer:
            return linear(g, x, ("a.weight",), (ROWS,))[0]

        made = program(weights, columns, build)
        cpu = CpuExecutor(made, 2, max_batch=64, threads=1, instruction_set=isa, deterministic=True)
        whole = run_all(cpu, one_sequence(max(SIZES)))
        for size in SIZES:
            np.testing.assert_array_equal(run_all(cpu, one_sequence(size)), whole[:size])
