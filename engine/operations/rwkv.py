"""The operations of RWKV 7: the shift of tokens, and time mixing by a generalized delta rule.

Source: Peng et al. 2025 (RWKV-7 "Goose"), sections 4.1 and 4.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lltool.engine.operations.elementwise import sigmoid
from lltool.engine.program import Buffer, Calls, Cost, Operation, Rows, Tracer, Weight
from lltool.engine.reference.context import Context
from lltool.engine.state import Slot

LEAST_LENGTH = 1e-12
"""The least length that the direction of a removed key is divided by."""

FASTEST_DECAY = float(np.exp(-0.5))
"""Minus the logarithm of the least factor that a state is multiplied by."""


@dataclass(frozen=True)
class TokenShift(Operation):
    """outs[i] = x + (before - x) * weight[i], where `before` is x of the token before, and 0 before a text.

    The weight is (outs, width). A sequence keeps its last x.
    """

    x: Buffer
    outs: tuple[Buffer, ...]
    weight: str

    @property
    def title(self) -> str:
        return "token shift"

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.weight: (len(self.outs), self.x.width)}

    @property
    def state(self) -> tuple[Slot]:
        return (Slot(self.weight, (self.x.width,)),)

    def reference(self, run: Context) -> None:
        x, weight = run[self.x], run.weight(self.weight)
        before = np.empty_like(x)
        for rows, (last,) in run.sequences(*self.state):
            before[rows] = np.concatenate([last[None], x[rows[:-1]]])
            last[:] = x[rows[-1]]
        for out, share in zip(self.outs, weight, strict=True):
            run[out] = x + (before - x) * share


@dataclass(frozen=True)
class TimeMix(Operation):
    """Each head has a state S, (dim, dim), that a token changes and then reads. For a head's parts of a token's rows:

    value = v + (first - v) * sigmoid(mix), or v where there is no `first`;
    removed = the direction of k * k_k; rate = sigmoid(a); key = k * (1 + (rate - 1) * k_a);
    S = exp(-e^-0.5 * sigmoid(w)) * S - (rate * removed) ⊗ (removed @ S) + key ⊗ value;
    outs[0] = r @ S; outs[1] = sum(r * key * r_k) * value, which is added to a norm of the former.

    All rows have the width of the heads together, and so have the weights.
    """

    r: Buffer
    w: Buffer
    k: Buffer
    v: Buffer
    a: Buffer
    first: Buffer | None
    mix: Buffer | None
    outs: tuple[Buffer, Buffer]
    k_k: str
    k_a: str
    r_k: str
    heads: int

    @property
    def title(self) -> str:
        return "time mix"

    @property
    def dim(self) -> int:
        return self.r.width // self.heads

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys((self.k_k, self.k_a, self.r_k), (self.r.width,))

    @property
    def state(self) -> tuple[Slot]:
        return (Slot(self.r_k, (self.heads, self.dim, self.dim)),)

    def cost(self, calls: Calls, weights: Mapping[str, Weight]) -> Cost:
        """A call reads the state of each of its sequences, whose elements take four products for each token."""
        (slot,) = self.state
        return Cost(len(calls.pieces) * slot.bytes, floats=sum(calls.rows[Rows.TOKEN]) * 4.0 * slot.bytes / 4)

    def reference(self, run: Context) -> None:
        def heads_of(rows: np.ndarray) -> np.ndarray:
            return rows.reshape(*rows.shape[:-1], self.heads, self.dim)

        r, k, v = (heads_of(run[buffer]) for buffer in (self.r, self.k, self.v))  # (T, heads, dim)
        rate, decay = heads_of(sigmoid(run[self.a])), heads_of(np.exp(-FASTEST_DECAY * sigmoid(run[self.w])))
        k_k, k_a, r_k = (heads_of(run.weight(name)) for name in (self.k_k, self.k_a, self.r_k))
        if self.first is not None and self.mix is not None:
            v = v + (heads_of(run[self.first]) - v) * heads_of(sigmoid(run[self.mix]))
        removed = k * k_k
        removed = removed / np.maximum(np.sqrt(np.sum(removed * removed, axis=-1, keepdims=True)), LEAST_LENGTH)
        key = k * (1 + (rate - 1) * k_a)
        out = np.empty_like(v)
        for tokens, (state,) in run.sequences(*self.state):
            for t in tokens:
                found = np.einsum("hk,hkv->hv", removed[t], state)
                state *= decay[t][..., None]
                state += key[t][..., None] * v[t][:, None] - (rate[t] * removed[t])[..., None] * found[:, None]
                out[t] = np.einsum("hk,hkv->hv", r[t], state)
        run[self.outs[0]] = out.reshape(len(out), -1)
        run[self.outs[1]] = ((r * key * r_k).sum(axis=-1, keepdims=True) * v).reshape(len(out), -1)


def token_shift(g: Tracer, x: Buffer, weight: str, count: int) -> tuple[Buffer, ...]:
    return g.add(TokenShift(x, tuple(g.like(x) for _ in range(count)), weight)).outs


def time_mix(
    g: Tracer,
    r: Buffer,
    w: Buffer,
    k: Buffer,
    v: Buffer,
    a: Buffer,
    values: tuple[Buffer, Buffer] | None,
    *,
    weights: tuple[str, str, str],
    heads: int,
) -> tuple[Buffer, Buffer]:
    """`values` are the first layer's and what mixes them with v; `weights` are k_k, k_a and r_k."""
    first, mix = values or (None, None)
    return g.add(TimeMix(r, w, k, v, a, first, mix, (g.like(r), g.like(r)), *weights, heads)).outs
