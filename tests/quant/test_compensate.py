"""Error compensation: less output error than plain encoding, optimal changes of later columns, no row worse."""

import numpy as np
import pytest

from lltool.gguf.ggml_types import GGMLType
from lltool.quant.codec import decode, encode
from lltool.quant.compensate import SHRINKAGE, Correlation, encode_compensated


def make(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and inputs whose columns are correlated."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(2000, 24)) @ random.normal(size=(24, columns)) + 0.3 * random.normal(
        size=(2000, columns)
    )
    return random.normal(size=(rows, columns)).astype(np.float32), inputs


def test_the_factor_belongs_to_the_inverse() -> None:
    _, inputs = make(1, 96)
    moments = inputs.T @ inputs / len(inputs)
    correlation = Correlation.of(moments)
    damped = (1 - SHRINKAGE) * moments + SHRINKAGE * np.diag(np.diag(moments))
    assert correlation.factor.T @ correlation.factor @ damped == pytest.approx(np.eye(96), abs=1e-4)
    assert np.array_equal(correlation.factor, np.triu(correlation.factor))
    error = np.random.default_rng(1).normal(size=(3, 96))
    assert correlation.losses(error) == pytest.approx([e @ damped @ e for e in error], rel=1e-4)


@pytest.mark.parametrize("type", [GGMLType.Q4_0, GGMLType.Q5_1, GGMLType.IQ4_NL, GGMLType.Q4_K, GGMLType.Q6_K])
def test_the_output_error_is_smaller(type: GGMLType) -> None:
    weights, inputs = make(40, 512)
    correlation = Correlation.of(inputs.T @ inputs / len(inputs))
    importance = (inputs**2).mean(axis=0).astype(np.float32)
    plain = decode(encode(weights, type, importance), type)
    made = decode(encode_compensated(weights, type, correlation), type)
    lost = [((inputs @ (weights - other).T) ** 2).mean(axis=0) for other in (plain, made)]
    assert lost[1].sum() < 0.8 * lost[0].sum()


def test_later_columns_minimize_the_loss() -> None:
    """With two blocks, the second one is encoded from the least-squares solution given the first."""
    weights, inputs = make(5, 64)
    correlation = Correlation.of(inputs.T @ inputs / len(inputs))
    made = decode(encode_compensated(weights, GGMLType.Q4_0, correlation), GGMLType.Q4_0)
    moments = correlation.moments
    lost = weights[:, :32].astype(float) - made[:, :32]
    target = weights[:, 32:] + np.linalg.solve(moments[32:, 32:], moments[32:, :32] @ lost.T).T
    importance = np.diag(moments)[32:].astype(np.float32)
    expected = decode(encode(target.astype(np.float32), GGMLType.Q4_0, importance), GGMLType.Q4_0)
    plain = decode(encode(weights, GGMLType.Q4_0, np.diag(moments).astype(np.float32)), GGMLType.Q4_0)
    moved = (made != plain).any(axis=1)
    assert moved.any()
    assert made[moved, 32:] == pytest.approx(expected[moved], rel=1e-5)


def test_no_row_is_worse_than_plain() -> None:
    weights, _ = make(60, 64)
    correlation = Correlation.of(np.eye(64))  # other columns cannot compensate
    plain = decode(encode(weights, GGMLType.Q4_0, np.ones(64, np.float32)), GGMLType.Q4_0)
    made = decode(encode_compensated(weights, GGMLType.Q4_0, correlation), GGMLType.Q4_0)
    assert (correlation.losses(weights - made) <= correlation.losses(weights - plain) * (1 + 1e-9)).all()
