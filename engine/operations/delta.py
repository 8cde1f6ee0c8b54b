"""Linear attention by the gated delta rule: a state of fixed size takes the place of a cache of keys and values.

Sources: Yang et al. 2024 (Gated DeltaNet); Kimi Team 2025 (Kimi Linear), where each dimension of keys decays by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lltool.engine.operations.elementwise import sigmoid
from lltool.engine.program import Buffer, Calls, Cost, Operation, Rows, Tracer, Weight
from lltool.engine.reference.context import Context, Floats
from lltool.engine.state import Slot

LENGTH_EPSILON = 1e-6
"""What is added to the squared length of a query or key before it is divided by its length."""


@dataclass(frozen=True)
class GatedDelta(Operation):
    """Each head of values has a state S, (key_dim, value_dim), that a token changes and then reads:

    S = decay * S, where decay = exp(rate * softplus(alpha + bias));
    S = S + k ⊗ (sigmoid(beta) * (v - k @ S)); out = q @ S / sqrt(key_dim).

    A row of `qkv` has the queries and keys of `key_heads` heads, which are divided by their lengths, and the values of
    `heads`. Head h has the query and the key of head h // (heads // key_heads), or where `tiled`, of h % key_heads.
    `beta` has a number for each head; `alpha` and `bias` have one for each head, or for each dimension of its key;
    `rate` has one for each head.
    """

    qkv: Buffer
    beta: Buffer
    alpha: Buffer
    out: Buffer
    rate: str
    bias: str
    layer: int
    key_heads: int
    key_dim: int
    tiled: bool = False

    @property
    def heads(self) -> int:
        return self.beta.width

    @property
    def value_dim(self) -> int:
        return self.out.width // self.heads

    @property
    def title(self) -> str:
        return "gated delta"

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.rate: (self.heads,), self.bias: (self.alpha.width,)}

    @property
    def state(self) -> tuple[Slot]:
        return (Slot(f"blk.{self.layer}.delta", (self.heads, self.key_dim, self.value_dim)),)

    def cost(self, calls: Calls, weights: Mapping[str, Weight]) -> Cost:
        """A call reads the state of each of its sequences, whose elements take three products for each token."""
        (slot,) = self.state
        return Cost(len(calls.pieces) * slot.bytes, floats=sum(calls.rows[Rows.TOKEN]) * 3.0 * slot.bytes / 4)

    def reference(self, run: Context) -> None:
        rows, width = run[self.qkv], self.key_heads * self.key_dim
        q, k = (self._keys(rows[:, i * width : (i + 1) * width]) for i in range(2))  # (T, heads, key_dim)
        v = rows[:, 2 * width :].reshape(len(rows), self.heads, self.value_dim)
        strength = sigmoid(run[self.beta])
        steps = np.logaddexp(0, run[self.alpha] + run.weight(self.bias)).reshape(len(rows), self.heads, -1)
        decay = np.exp(run.weight(self.rate)[:, None] * steps)  # (T, heads, 1 or key_dim)
        out = np.empty_like(v)
        for tokens, (state,) in run.sequences(*self.state):
            for t in tokens:
                state *= decay[t][..., None]
                change = strength[t][:, None] * (v[t] - np.einsum("hk,hkv->hv", k[t], state))
                state += k[t][..., None] * change[:, None]
                out[t] = np.einsum("hk,hkv->hv", q[t], state) / np.sqrt(rows.dtype.type(self.key_dim))
        run[self.out] = out.reshape(len(rows), -1)

    def _keys(self, rows: Floats) -> Floats:
        """The unit vectors of each head of values, (T, heads, key_dim), for queries or keys (T, width)."""
        x = rows.reshape(len(rows), self.key_heads, self.key_dim)
        x = x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + LENGTH_EPSILON)
        group = self.heads // self.key_heads
        return np.tile(x, (1, group, 1)) if self.tiled else x.repeat(group, axis=1)


def gated_delta(
    g: Tracer,
    qkv: Buffer,
    beta: Buffer,
    alpha: Buffer,
    *,
    rate: str,
    bias: str,
    layer: int,
    key_heads: int,
    key_dim: int,
    tiled: bool = False,
) -> Buffer:
    out = g.buffer(qkv.width - 2 * key_heads * key_dim, qkv.rows)
    return g.add(GatedDelta(qkv, beta, alpha, out, rate, bias, layer, key_heads, key_dim, tiled)).out
