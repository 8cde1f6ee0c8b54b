"""Rounding that makes up for its own errors: what one block of columns loses, the columns behind it take on.

The inputs of a matrix are correlated, so the error of one column can be undone in part by changing others. Blocks of
columns are encoded in order by the type's ordinary encoder; each time the columns not yet encoded move to where the
output error is least. The bytes are of stock types. Source: GPTQ (Frantar et al. 2022), by blocks instead of columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.source import Bytes
from lltool.quant.codec import decode, encode

Floats = NDArray[np.float32]

# Share by which correlations are taken for chance: those of few tokens, trusted wholly, do harm on other text.
SHRINKAGE = 0.15
_RIDGE = 1e-6  # of the mean of the diagonal, for columns that are always 0


@dataclass(frozen=True)
class Correlation:
    """How the columns of a matrix's input go together.

    `moments` (columns, columns) is the mean of xᵀx, shrunk towards its diagonal; `factor` the upper triangle U
    with UᵀU = the inverse of that.
    """

    moments: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def of(cls, moments: NDArray[np.float64]) -> "Correlation":
        diagonal = np.diag(moments)
        ridge = _RIDGE * max(float(diagonal.mean()), 1e-20)
        damped = (1 - SHRINKAGE) * moments + np.diag(SHRINKAGE * diagonal + ridge)
        return cls(damped, np.linalg.cholesky(np.linalg.inv(damped)).T)

    def losses(self, error: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected square of the output's error for each row of weight errors (rows, columns)."""
        result: NDArray[np.float64] = np.einsum("rc,rc->r", error @ self.moments, error)
        return result


def encode_compensated(weights: Floats, type: GGMLType, correlation: Correlation, threads: int | None = None) -> Bytes:
    """The bytes of `weights` (rows, columns) as `type`; each row as its blocks make up for one another, or plain where
    that is better."""
    block, size = LAYOUT[type]
    columns = weights.shape[1]
    importance = np.diag(correlation.moments).astype(np.float32)
    plain = encode(weights, type, importance, threads)
    out = np.empty_like(plain)
    moved = weights.astype(np.float64)
    for start in range(0, columns, block):
        stop = start + block
        mine = np.ascontiguousarray(moved[:, start:stop], np.float32)
        encoded = encode(mine, type, importance[start:stop], threads)
        out[:, start // block * size : stop // block * size] = encoded
        lost = moved[:, start:stop] - decode(encoded, type, threads)
        spread = np.linalg.solve(correlation.factor[start:stop, start:stop].T, lost.T).T
        moved[:, stop:] -= spread @ correlation.factor[start:stop, stop:]
    better = _losses(weights, plain, type, correlation, threads) < _losses(weights, out, type, correlation, threads)
    out[better] = plain[better]
    return out


def _losses(
    weights: Floats, encoded: Bytes, type: GGMLType, correlation: Correlation, threads: int | None
) -> NDArray[np.float64]:
    return correlation.losses(weights.astype(np.float64) - decode(encoded, type, threads))
