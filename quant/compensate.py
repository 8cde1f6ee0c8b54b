"""Quantization with error compensation: later columns are adjusted to compensate the rounding errors of earlier ones.

The inputs of a matrix are correlated, so changing other columns can partly undo the error of one column. Blocks of
columns are encoded in order by the type's ordinary encoder; after each block, the remaining columns are changed so that
the output error is least. The types are stock ones. Source: GPTQ (Frantar et al. 2022), by blocks instead of columns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.source import Bytes
from lltool.quant.codec import decode, encode

Floats = NDArray[np.float32]

# How far correlations are shrunk towards 0: those measured on few tokens, used in full, do harm on other text.
SHRINKAGE = 0.15
_RIDGE = 1e-6  # relative to the mean of the diagonal; needed for columns that are always 0


@dataclass(frozen=True)
class Correlation:
    """The second moments of a matrix's input.

    `moments` (columns, columns) is the mean of xᵀx, shrunk towards its diagonal; `factor` is the upper triangular U
    with UᵀU = the inverse of `moments`.
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
        """The expected squared output error, (rows,), for weight errors (rows, columns)."""
        result: NDArray[np.float64] = np.einsum("rc,rc->r", error @ self.moments, error)
        return result


def encode_compensated(weights: Floats, type: GGMLType, correlation: Correlation, threads: int | None = None) -> Bytes:
    """The bytes of `weights` (rows, columns) as `type`, uint8 (rows, row_bytes).

    Each row is encoded with compensation, or plainly if that has the smaller error.
    """
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
