"""IQ1_M against its definition in ggml, in numpy: libgguf is older and breaks ties between equal splits otherwise.

Source: quantize_row_iq1_m_impl of ggml-quants.c, where sums of a split's parts are differences of running sums.
"""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.gguf.ggml_types import GGMLType
from lltool.quant import _native
from lltool.quant.codec import encode
from tests.quant.test_encode import KINDS, make_importance, make_rows

Floats = NDArray[np.float32]
BOOK = _native.codebook("iq1").astype(np.int32) // 8  # (2048, 8) levels 0 to 2
LEVELS = np.array([[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]], np.float32)  # shifted up, down


@cache
def candidates(point: tuple[int, ...]) -> NDArray[np.intp]:
    """The entry at a point, or else the entries at the three least distances from it, nearest first."""
    distance = ((BOOK - np.array(point)) ** 2).sum(axis=1)
    nearest = np.unique(distance)
    kept = distance <= nearest[0 if nearest[0] == 0 else 2]
    return np.flatnonzero(kept)[np.argsort(distance[kept], kind="stable")]


def find_splits(x: Floats, weight: Floats) -> tuple[Floats, NDArray[np.int_], NDArray[np.int_]]:
    """Scales, levels (groups, 16) and shifts (groups, 2; 1 is down) of groups of 16; NaN if there is no split."""
    order = np.argsort(x, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    running = np.zeros((4, len(x), 17), np.float32)  # running sums of weight * x and of weight, for each half
    for n, terms in enumerate((weight * x, weight)):
        for half in (0, 1):
            here = np.where(order // 8 == half, np.take_along_axis(terms, order, axis=1), np.float32(0))
            running[2 * n + half, :, 1:] = np.cumsum(here, axis=1, dtype=np.float32)
    top, squares = LEVELS[:, 2], LEVELS**2
    scale = np.full(len(x), np.nan, np.float32)
    score = np.full(len(x), -np.finfo(np.float32).max)
    chosen = np.zeros((len(x), 3), int)  # the beginnings of the middle and the high part, and the shifts
    for middle in range(17):
        for high in range(middle, 17):
            xq: dict[tuple[int, int], Floats] = {}  # by half and shift
            qq: dict[tuple[int, int], Floats] = {}
            for half in (0, 1):
                sums, counts = running[half], running[2 + half]
                for k in (0, 1):
                    xq[half, k] = sums[:, 16] * top[k] - (sums[:, middle] + sums[:, high])
                    at_middle, at_high = squares[k, 0] - squares[k, 1], squares[k, 1] - squares[k, 2]
                    qq[half, k] = counts[:, 16] * top[k] * top[k] + counts[:, middle] * at_middle
                    qq[half, k] += counts[:, high] * at_high
            for both in range(4):
                sum_xq = xq[0, both >> 1] + xq[1, both & 1]
                sum_qq = qq[0, both >> 1] + qq[1, both & 1]
                better = (sum_qq > 0) & (sum_xq * sum_xq > score * sum_qq)
                scale[better] = (sum_xq / sum_qq)[better]
                score = np.where(better, scale * sum_xq, score)
                chosen[better] = middle, high, both
    levels = (rank >= chosen[:, :1]).astype(int) + (rank >= chosen[:, 1:2])
    shifts = np.stack([chosen[:, 2] >> 1, chosen[:, 2] & 1], axis=1)
    negative = scale < 0
    levels[negative], shifts[negative] = 2 - levels[negative], 1 - shifts[negative]
    return np.abs(scale), levels, shifts


def nearest(v: Floats) -> NDArray[np.int32]:
    """ggml's nearest_int, including its results for NaN and infinity."""
    return ((v + np.float32(12582912)).view(np.int32) & 0x7FFFFF) - 0x400000


def encode_blocks(x: Floats, importance: Floats | None) -> list[bytes]:
    """Encodes blocks of 256 weights, (blocks, 256); `importance` has the same shape."""
    weight = x * x
    if importance is not None:
        mean_square = np.float32(2) * np.cumsum(x * x, axis=1, dtype=np.float32)[:, -1:] / np.float32(256)
        weight = importance * np.sqrt(mean_square + x * x)
    x, weight = x.reshape(-1, 16), weight.reshape(-1, 16)
    scale, levels, shifts = find_splits(x, weight)
    groups = [slice(16 * n, 16 * n + 16) for n in range(len(x) // 16)]
    return [encode_block(x[g], weight[g], scale[g], levels[g], shifts[g]) for g in groups]


def encode_block(x: Floats, weight: Floats, scale: Floats, levels: NDArray[np.int_], shifts: NDArray[np.int_]) -> bytes:
    """Encodes one block of 16 groups of 16 weights."""
    zero = np.isnan(scale) | (np.abs(x).max(axis=1) < np.float32(1e-7))
    entries, values = np.zeros((16, 2), int), np.zeros((16, 16), np.float32)
    for g in range(16):
        found = [candidates(tuple(levels[g, 8 * k : 8 * k + 8].tolist())) for k in (0, 1)]
        if zero[g]:
            scale[g], shifts[g], found = 0, 0, [np.zeros(1, int)] * 2
        for k in (0, 1):
            part = slice(8 * k, 8 * k + 8)
            error = scale[g] * LEVELS[shifts[g, k]][BOOK[found[k]]] - x[g, part]
            sums = np.cumsum(weight[g, part] * error * error, axis=1, dtype=np.float32)[:, -1]
            entries[g, k] = found[k][np.argmin(sums)]
            values[g, part] = LEVELS[shifts[g, k]][BOOK[entries[g, k]]]
        if not zero[g] and max(map(len, found)) > 1:
            sum_xq, sum_qq = add_up(x[g], weight[g], values[g])
            scale[g] = sum_xq / sum_qq if sum_xq > 0 and sum_qq > 0 else scale[g]
    low, high, words = entries & 255, (entries[:, 0] >> 8) | (entries[:, 1] >> 8 << 4), np.zeros(4, int)
    if scale.max() > 0:
        d = scale.max() / np.float32(15)
        stored = np.clip(nearest(np.float32(0.5) * (np.float32(1) / d * scale - np.float32(1))), 0, 7)
        sum_xq, sum_qq = add_up(x, weight, values * (2 * stored + 1).astype(np.float32)[:, None])
        d = sum_xq / sum_qq if sum_qq > 0 else d
        half = int(np.float16(d * np.float32(1.1125)).view(np.uint16))
        high |= shifts[:, 0] << 3 | shifts[:, 1] << 7
        words = (stored.reshape(4, 4) << np.array([0, 3, 6, 9])).sum(axis=1)
        words |= (half >> np.array([0, 4, 8, 12]) & 15) << 12
    return low.astype(np.uint8).tobytes() + high.astype(np.uint8).tobytes() + words.astype("<u2").tobytes()


def add_up(x: Floats, weight: Floats, q: Floats) -> tuple[np.float32, np.float32]:
    sums = [np.cumsum(terms, dtype=np.float32)[-1] for terms in (weight * q * x, weight * q * q)]
    return sums[0], sums[1]


@cache
def expected_bytes(kind: str, important: str) -> bytes:
    rows, importance = make_rows(kind)[:2], make_importance(important)
    columns = None if importance is None else np.tile(importance.reshape(-1, 256), (len(rows), 1))
    return b"".join(encode_blocks(rows.reshape(-1, 256), columns))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("important", ["plain", "importance", "few columns"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_equal_the_definition(kind: str, important: str, each_isa: str) -> None:
    data = encode(make_rows(kind)[:2], GGMLType.IQ1_M, make_importance(important))
    np.testing.assert_array_equal(
        data.reshape(-1, 56), np.frombuffer(expected_bytes(kind, important), np.uint8).reshape(-1, 56)
    )
