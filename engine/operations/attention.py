"""Attention over the paged cache of keys and values, and over all tokens of a text that is evaluated whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, CacheType
from lltool.engine.operations.distance_bias import DistanceBias
from lltool.engine.program import Buffer, Calls, Cost, Operation, Program, Tracer, Weight
from lltool.engine.reference.cache_rounding import round_to_cache
from lltool.engine.reference.context import Context
from lltool.engine.state import KeyValue
from lltool.gguf.ggml_types import row_bytes

BLOCK_TYPES: tuple[CacheType, ...] = ("q8_0", "q4_0")


@dataclass(frozen=True)
class Attention(Operation):
    """Stores k and v of the batch in the cache of `layer`; then out = softmax(scale * q @ Kᵀ) @ V with a causal mask.

    If `window` > 0, a query at position p sees only keys at positions > p - window; if `chunk` > 0, only those of its
    own chunk of so many positions. If `softcap` > 0, a score becomes softcap * tanh(score / softcap). `bias` is added
    to scores by the distance of a key. `slopes` are, for each head, what a score loses for each position between query
    and key (ALiBi). `sinks` holds, for each head, the score of a key that every query sees and that has no value. A
    head of values has a width of its own; where `v` is `k`, a value is the beginning of its key. Before a key is
    stored, the common key is subtracted from it. Unless it `stores`, k and v are those of an attention before it with
    the same `layer`, which has stored them.

    Without `causal`, the tokens of a sequence in the batch are a whole text: a query sees the keys of all of them or,
    if `window` > 0, those at a distance of at most window // 2, and `slopes` count the distance in both directions.
    The keys are not needed afterwards, so all layers of a program have the same number and take turns in its pages.
    """

    q: Buffer
    k: Buffer
    v: Buffer
    out: Buffer
    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: str | None = None
    slopes: tuple[float, ...] | None = None
    chunk: int = 0
    causal: bool = True
    bias: DistanceBias | None = None
    stores: bool = True

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {} if self.sinks is None else {self.sinks: (self.heads,)}
        return shapes if self.bias is None else shapes | {self.bias.weight: (self.bias.buckets, self.heads)}

    @property
    def value_dim(self) -> int:
        return self.out.width // self.heads

    @property
    def state(self) -> tuple[KeyValue]:
        return (KeyValue(self.layer, self.kv_heads, self.head_dim, self.value_dim, value_is_key=self.v == self.k),)

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """How many positions before its own, and after it, a query sees; None: all."""
        if self.causal:
            return (self.window - 1 if self.window else None), 0
        return (self.window // 2,) * 2 if self.window else (None, None)

    def cost(self, calls: Calls, weights: Mapping[str, Weight]) -> Cost:
        if self.causal:
            pairs, keys = _count_keys(cut_at_chunks(calls.pieces, self.chunk), self.window)
        else:
            pairs, keys = _count_whole(calls.pieces, self.window)
        key, value = row_bytes(calls.key_type, self.head_dim), row_bytes(calls.value_type, self.value_dim)
        read = keys * self.kv_heads * (key if self.v == self.k else key + value)
        return Cost(read, floats=float(pairs * self.heads * (self.head_dim + self.value_dim)))

    def common_key(self, program: Program, kind: CacheType) -> NDArray[np.float32] | None:
        """What a bias adds to all keys alike, (KvH, Hd), so that a cache of type `kind` need not store it.

        Adding the same number to the scores of all keys does not change their softmax. If keys have a bias, the common
        part can be most of a key, and a block-quantized cache would spend most of its precision on it. None if there is
        no bias, if the cache holds keys as floats, or if leaving the common part out would change the result: with a
        softcap, with sinks, or where values are views of keys.
        """
        if kind not in BLOCK_TYPES or self.softcap or self.sinks or self.v == self.k:
            return None
        bias = program.mean_bias(self.k)
        return None if bias is None else bias.astype(np.float32).reshape(self.kv_heads, self.head_dim)

    def reference(self, run: Context) -> None:
        batch = run.batch
        keys, values = run.keys[self.layer], run.values[self.layer]  # (pages * PAGE, KvH, Hd) and (..., Vd)
        q = run[self.q].reshape(-1, self.heads, self.head_dim)
        k = run[self.k].reshape(-1, self.kv_heads, self.head_dim)
        if (common := self.common_key(run.program, run.key_type)) is not None:
            k = k - common
        rows = batch.tables[batch.sequences, batch.positions // PAGE] * PAGE + batch.positions % PAGE  # (T,)
        if self.stores:
            keys[rows] = round_to_cache(k, run.key_type, self.value_dim if self.v == self.k else 0)
        if self.stores and self.v != self.k:
            values[rows] = round_to_cache(run[self.v].reshape(-1, self.kv_heads, self.value_dim), run.value_type)

        out = np.empty((*q.shape[:2], self.value_dim), q.dtype)
        for sequence in np.unique(batch.sequences):
            mine = batch.sequences == sequence
            positions = batch.positions[mine]
            seen = np.arange(positions.max() + 1)
            rows = batch.tables[sequence, seen // PAGE] * PAGE + seen % PAGE
            k, v = (x[rows].repeat(self.heads // self.kv_heads, axis=1) for x in (keys, values))  # (n, H, ...)
            scores = np.einsum("thd,nhd->htn", q[mine], k, optimize=True) * self.scale
            if self.softcap:
                scores = self.softcap * np.tanh(scores / self.softcap)
            distance = positions[:, None] - seen  # (T, n)
            if self.bias is not None:
                table = run.weight(self.bias.weight)  # (buckets, H)
                scores = scores + table[self.bias.buckets_of(-distance)].transpose(2, 0, 1)
            if self.slopes is not None:
                scores = scores - np.array(self.slopes)[:, None, None] * np.abs(distance)
            before, after = self.reach
            hidden = (distance > before if before is not None else False) | (
                -distance > after if after is not None else False
            )
            if self.chunk:
                hidden = hidden | (positions[:, None] // self.chunk != seen // self.chunk)
            scores = np.where(hidden, -np.inf, scores)
            if self.sinks:
                sinks = np.broadcast_to(run.weight(self.sinks)[:, None, None], (*scores.shape[:2], 1))
                scores = np.concatenate([scores, sinks], axis=-1)  # (H, T, n + 1)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            out[mine] = np.einsum("htn,nhd->thd", weights[..., : len(seen)], v, optimize=True)
        run[self.out] = out.reshape(-1, self.out.width)


def attend(
    g: Tracer,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    *,
    layer: int,
    head_dim: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: str | None = None,
    slopes: tuple[float, ...] | None = None,
    value_dim: int | None = None,
    chunk: int = 0,
    causal: bool = True,
    bias: DistanceBias | None = None,
    stores: bool = True,
) -> Buffer:
    """`value_dim` is needed only where `v` is `k`."""
    heads, kv_heads = q.width // head_dim, k.width // head_dim
    out = g.buffer(heads * (v.width // kv_heads if value_dim is None else value_dim), q.rows)
    if not causal:
        layer = 0
    op = Attention(
        q,
        k,
        v,
        out,
        layer,
        heads,
        kv_heads,
        head_dim,
        scale,
        window,
        softcap,
        sinks,
        slopes,
        chunk,
        causal,
        bias,
        stores,
    )
    return g.add(op).out


def cut_at_chunks(pieces: Sequence[tuple[int, int]], chunk: int) -> list[tuple[int, int]]:
    """The pieces cut where a chunk ends, with positions counted from the chunk's beginning."""
    if not chunk:
        return list(pieces)
    cut = []
    for first, count in pieces:
        while count:
            n = min(count, chunk - first % chunk)
            cut.append((first % chunk, n))
            first, count = first + n, count - n
    return cut


def _count_keys(pieces: Sequence[tuple[int, int]], window: int) -> tuple[int, int]:
    """The number of pairs of a token and a key that it sees, and of keys that the pieces read."""
    spans = np.array(pieces, np.int64).reshape(-1, 2)
    first, ends = spans[:, 0], spans.sum(axis=1)
    reach = window or int(ends.max(initial=0))
    # A token at position p sees min(p + 1, reach) keys; summed over p < n that is:
    seen, before = np.minimum(ends, reach), np.minimum(first, reach)
    pairs = (seen * (seen + 1) - before * (before + 1)) // 2 + reach * ((ends - seen) - (first - before))
    keys = ends - np.maximum(first - reach + 1, 0)
    return int(pairs.sum()), int(keys.sum())


def _count_whole(pieces: Sequence[tuple[int, int]], window: int) -> tuple[int, int]:
    """What `_count_keys` gives, of pieces that are whole texts whose tokens see each other in both directions."""
    lengths = np.array(pieces, np.int64).reshape(-1, 2)[:, 1]
    reach = np.minimum(window // 2 if window else lengths, np.maximum(lengths - 1, 0))
    return int((lengths * (2 * reach + 1) - reach * (reach + 1)).sum()), int(lengths.sum())
