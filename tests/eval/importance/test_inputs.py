"""Moments of the inputs of linears against those that the reference executor sees."""

from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.engine.operations.linear import Linear
from lltool.engine.reference.context import Context
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.engine.segments import parallel_batch
from lltool.eval.importance.inputs import LinearInputs
from lltool.quant.compensate import Correlation
from tests.engine import tiny_gguf


def test_moments_equal_the_reference_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())
    program = load_model(path, precision="f32").program
    windows = np.random.default_rng(0).integers(0, tiny_gguf.VOCAB, (11, 40)).astype(np.int32)
    batch, pages = parallel_batch(windows, np.arange(windows.size))

    seen: dict[str, np.ndarray] = {}
    multiply = Linear.reference

    def watch(op: Linear, run: Context) -> None:
        seen.update(dict.fromkeys(op.weights, run[op.x].astype(float)))
        multiply(op, run)

    monkeypatch.setattr(Linear, "reference", watch)
    ReferenceExecutor(program, pages).run(batch)
    inputs = LinearInputs(program, windows, threads=1)
    assert not inputs.has("token_embd.weight")  # of the head
    names = ["blk.0.ffn_up.weight", "blk.0.attn_v.weight", "blk.2.ffn_down.weight", "blk.1.attn_q.weight"]
    for name in names:
        found = inputs.correlation(name)
        x = seen[name]
        expected = Correlation.of(x.T @ x / len(x))
        assert found.moments == pytest.approx(expected.moments, rel=1e-3, abs=1e-4 * float(np.abs(x).max()) ** 2), name
