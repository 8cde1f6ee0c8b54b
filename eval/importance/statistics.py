"""Statistics of importance for each matrix and each layer: the figures of llama-imatrix --show-statistics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lltool.quant.choose import block_of
from lltool.quant.importance import Importance

ACTIVE = 1e-5  # a column is active if its mean square is larger


@dataclass(frozen=True)
class MatrixStatistics:
    """Statistics of a matrix's mean squares, over all columns of the experts that saw tokens.

    `layer` is None outside of layers. `active`, `entropy_share` (of the largest possible entropy) and `outliers` (more
    than one standard deviation above the mean) are fractions; `entropy` is in bits. `cosine` is the cosine similarity
    of the sums of this matrix and the same matrix in the layer before (0 if there is none).
    """

    name: str
    layer: int | None
    columns: int
    total: float
    low: float
    high: float
    mean: float
    deviation: float
    active: float
    entropy: float
    entropy_share: float
    outliers: float
    cosine: float

    @property
    def kind(self) -> str:
        """The name within the layer, such as `attn_q` for `blk.0.attn_q.weight`."""
        return self.name.removeprefix(f"blk.{self.layer}.").removesuffix(".weight")


@dataclass(frozen=True)
class LayerStatistics:
    """Means over a layer's matrices, weighted by their columns."""

    layer: int
    total: float
    outliers: float
    cosine: float


def matrix_statistics(importance: Importance) -> list[MatrixStatistics]:
    """Sorted by kind of matrix, then the largest total first. Matrices that saw no token are left out."""
    made = []
    for name, sums in importance.sums.items():
        counts = importance.counts[name]
        if not counts.any():
            continue
        x = (sums[counts > 0] / counts[counts > 0, None]).astype(np.float64).ravel()
        total, mean, deviation = x.sum(), x.mean(), x.std()
        shares = x[x > 0] / total if total > 0 else np.empty(0)
        entropy = float(-(shares * np.log2(shares)).sum())
        layer = block_of(name)
        before = None if layer is None else importance.sums.get(name.replace(f".{layer}.", f".{layer - 1}.", 1))
        made.append(
            MatrixStatistics(
                name=name,
                layer=layer,
                columns=x.size,
                total=float(total),
                low=float(x.min()),
                high=float(x.max()),
                mean=float(mean),
                deviation=float(deviation),
                active=float((x > ACTIVE).mean()),
                entropy=entropy,
                entropy_share=entropy / float(np.log2(x.size)) if x.size > 1 else 0.0,
                outliers=float((x > mean + deviation).mean()) if deviation > 0 else 0.0,
                cosine=0.0 if before is None else _cosine(sums, before),
            )
        )
    return sorted(made, key=lambda s: (s.kind, -s.total))


def layer_statistics(matrices: Sequence[MatrixStatistics]) -> list[LayerStatistics]:
    layers = []
    for layer in sorted({s.layer for s in matrices if s.layer is not None}):
        mine = [s for s in matrices if s.layer == layer]
        weights = [s.columns for s in mine]
        means = (
            np.average([getattr(s, what) for s in mine], weights=weights) for what in ("total", "outliers", "cosine")
        )
        layers.append(LayerStatistics(layer, *map(float, means)))
    return layers


def format_statistics(importance: Importance) -> Iterator[str]:
    """The lines of llama-imatrix's two tables, tab-separated."""
    matrices = matrix_statistics(importance)
    yield "Layer\tTensor\tΣ(Act²)\tMin\tMax\tμ\tσ\t% Active\tN\tEntropy\tE (norm)\tZD\tCosSim"
    for s in matrices:
        layer = "-" if s.layer is None else s.layer
        yield (
            f"{layer:>5}\t{s.kind:<20}\t{s.total:10.2f}\t{s.low:8.4f}\t{s.high:11.4f}\t{s.mean:6.2f}\t{s.deviation:6.2f}\t"
            f"{s.active:8.2%}\t{s.columns:6}\t{s.entropy:10.4f}\t{s.entropy_share:6.2%}\t{s.outliers:10.2%}\t{s.cosine:8.4f}"
        )
    yield ""
    yield "Layer\tμΣ(Act²)\tμZD\tμCosSim"
    for layer_means in layer_statistics(matrices):
        yield (
            f"{layer_means.layer:5}\t{layer_means.total:14.2f}\t{layer_means.outliers:10.4%}\t{layer_means.cosine:6.4f}"
        )


def _cosine(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    if x.size != y.size:
        return 0.0
    a, b = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0
