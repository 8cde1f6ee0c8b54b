"""The native comparison of logits under every instruction set, against numpy's."""

import numpy as np
import pytest

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.reference.compare import compare_rows
from tests.engine.cpu.test_cpu import ISAS, VOCAB, f32_weight, one_sequence, program


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocabulary", [1, 7, 64, 1023, 1024, 3105])
def test_rows_are_compared_as_numpy_does(vocabulary: int, isa: str) -> None:
    """Rows apart, close, equal, of one large logit, and of equal ones; lengths that fill no vector and no block."""
    rng = np.random.default_rng(vocabulary)
    rows = rng.standard_normal((VOCAB, vocabulary), np.float32) * 5
    base = rng.standard_normal((VOCAB, vocabulary), np.float32) * 5 + 20
    base[:10] = rows[:10] + rng.standard_normal((10, vocabulary), np.float32) * 0.01
    base[10:13], rows[13:16], base[15:17] = rows[10:13], 3.0, 4.0
    rows[20:30, -1] = base[25:35, 0] = 60.0
    made = program([f32_weight("embed", rows)], vocabulary, lambda g, x: x)
    cpu = CpuExecutor(made, 1, max_batch=64, threads=2, instruction_set=isa)
    batch = one_sequence(VOCAB)
    cpu.run(batch)
    targets = rng.integers(0, vocabulary, 32).astype(np.int32)
    some = slice(5, 37)
    found = cpu.compare(5, base[some], targets)
    expected = compare_rows(base[some].astype(np.float64), rows[batch.tokens[some]].astype(np.float64), targets)
    # float32 sums of terms of up to 60 with weights that sum to 1; e^x is exact to 2 ulp
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    with pytest.raises(ValueError, match="shapes do not agree"):
        cpu.compare(5, base, targets)
    with pytest.raises(ValueError, match="no such token"):
        cpu.compare(5, base[some], targets + vocabulary)
