"""Mixtures of experts: each token is multiplied with a few of many matrices.

Source: Shazeer et al. 2017; groups and the bias of the choice are those of DeepSeek V3 (2024, sections 2.1.2 and 4.2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from lltool.engine.program import Buffer, Calls, Cost, Operation, Rows, Tracer, Weight
from lltool.engine.reference.context import Context, Floats
from lltool.gguf.ggml_types import LAYOUT, GGMLType

Scoring = Literal["softmax", "sigmoid", "sparsemixer"]

# The least sum of scores that they are divided by.
LEAST_SUM = 1e-20
# How much less a logit may be, relative to the larger of it and the best, that counts in a sparsemixer's softmax.
NEARLY = 0.02


@dataclass(frozen=True)
class Routing:
    """How `used` of `experts` are chosen, and what their outputs are multiplied by.

    The weights are the scores of the chosen experts, divided by their sum if `normalized`, times `factor`. A softmax
    over the chosen logits alone is a normalized softmax over all. With several `groups`, only experts of the
    `groups_used` best groups are chosen, where a group counts as much as its `counted` best experts together.

    A sparsemixer takes one expert after the other; the weight of each is its share in a softmax over those of the
    remaining experts whose logits are nearly as large (Phi 3.5 MoE; Liu et al. 2024, GRIN).
    """

    experts: int
    used: int
    scoring: Scoring = "softmax"
    normalized: bool = False
    factor: float = 1.0
    groups: int = 1
    groups_used: int = 1
    counted: int = 2


@dataclass(frozen=True)
class Route(Operation):
    """outs are the experts of each token, (T, used) int32, best first, and their weights, (T, used).

    `bias` (experts,) is added to the scores that decide the choice, and not to the weights. `scales` (experts,)
    multiply the weights at last.
    """

    logits: Buffer
    outs: tuple[Buffer, Buffer]
    routing: Routing
    bias: str | None = None
    scales: str | None = None

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.routing.experts,) for name in (self.bias, self.scales) if name is not None}

    def reference(self, run: Context) -> None:
        routing, logits = self.routing, run[self.logits]
        if routing.scoring == "sparsemixer":
            run[self.outs[0]], run[self.outs[1]] = _mix_sparsely(logits, routing)
            return
        if routing.scoring == "softmax":
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        else:
            scores = 0.5 + 0.5 * np.tanh(0.5 * logits)
        order = scores if self.bias is None else scores + run.weight(self.bias)
        if routing.groups > 1:
            order = _keep_groups(order, routing)
        chosen = np.argsort(-order, axis=1, kind="stable")[:, : routing.used]
        weights = np.take_along_axis(scores, chosen, axis=1)
        if routing.normalized:
            weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), LEAST_SUM)
        if self.scales is not None:
            weights = weights * run.weight(self.scales)[chosen]
        run[self.outs[0]], run[self.outs[1]] = chosen, weights * routing.factor


def _mix_sparsely(logits: Floats, routing: Routing) -> tuple[Floats, Floats]:
    """The chosen experts (T, used) and their weights."""
    left, rows = logits.copy(), np.arange(len(logits))
    chosen = np.empty((len(logits), routing.used), np.int64)
    weights = np.empty(chosen.shape, logits.dtype)
    for place in range(routing.used):
        chosen[:, place] = left.argmax(axis=1)
        best = left.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            far = (best - logits) / np.maximum(np.abs(logits), best) > NEARLY
        shares = np.where(far, 0, np.exp(left - best))
        weights[:, place] = routing.factor / shares.sum(axis=1)
        left[rows, chosen[:, place]] = -np.inf
    return chosen, weights


def _keep_groups(order: Floats, routing: Routing) -> Floats:
    """The scores (T, experts), -inf outside of the best groups."""
    groups = order.reshape(len(order), routing.groups, -1)  # (T, groups, n)
    best = np.sort(groups, axis=2)[..., -routing.counted :].sum(axis=2)
    kept = np.argsort(-best, axis=1, kind="stable")[:, : routing.groups_used]
    is_kept = np.zeros(best.shape, bool)
    np.put_along_axis(is_kept, kept, True, axis=1)
    return np.where(is_kept[..., None], groups, -np.inf).reshape(order.shape)


@dataclass(frozen=True)
class ExpertLinear(Operation):
    """outs[i] = x @ weights[i][e].T + biases[i][e] for each token and each of its experts e.

    The weights are stacks (experts, out, in), the biases (experts, out). `x` has a row for each token, or one for each
    assignment. A weight that is named several times is a stack of fused matrices: its outputs, of one width, take the
    rows of each matrix in turn.
    """

    changes_rows = True

    x: Buffer
    chosen: Buffer
    outs: tuple[Buffer, ...]
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    experts: int

    @cached_property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """Of each output: which part of its weight's matrices it takes, and how many equal parts these have."""
        seen = [self.weights[:index].count(weight) for index, weight in enumerate(self.weights)]
        return tuple((part, self.weights.count(weight)) for part, weight in zip(seen, self.weights, strict=True))

    @property
    def title(self) -> str:
        return "experts"

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for out, weight, bias, (_, parts) in zip(self.outs, self.weights, self.biases, self.parts, strict=True):
            shapes[weight] = (self.experts, parts * out.width, self.x.width)
            if bias is not None:
                shapes[bias] = (self.experts, out.width)
        return shapes

    @property
    def multiplied(self) -> dict[str, Buffer]:
        return dict.fromkeys(self.weights, self.x)

    @property
    def assigned(self) -> tuple[Buffer, int]:
        return self.chosen, self.experts

    def cost(self, calls: Calls, weights: Mapping[str, Weight]) -> Cost:
        """The experts read are those that as many tokens choose on average if each expert is as likely."""
        used, tokens, cost = self.chosen.width, np.array(calls.rows[Rows.TOKEN]), Cost()
        read = self.experts * (1 - (1 - used / self.experts) ** tokens).sum()
        for weight in (weights[name] for name in dict.fromkeys(self.weights)):
            products = float(tokens.sum()) * used * weight.rows / self.experts * weight.columns
            is_float = LAYOUT[weight.type].block == 1
            bytes_read = float(read) * weight.data.nbytes / self.experts
            cost += Cost(bytes_read, 0 if is_float else products, products if is_float else 0)
        return cost

    def reference(self, run: Context) -> None:
        x, owners = run[self.x], run[self.chosen].astype(np.int64).reshape(-1)  # (T * used,)
        if self.x.rows is not Rows.ASSIGNMENT:
            x = x.repeat(self.chosen.width, axis=0)
        for out, weight, bias, (part, _) in zip(self.outs, self.weights, self.biases, self.parts, strict=True):
            rows = slice(part * out.width, (part + 1) * out.width)
            y = np.empty((len(x), out.width), x.dtype)
            for expert in np.unique(owners):
                mine = owners == expert
                y[mine] = x[mine] @ run.weight(weight)[expert][rows].T
            run[out] = y if bias is None else y + run.weight(bias)[owners]


@dataclass(frozen=True)
class Weigh(Operation):
    """out, which has a row for each expert of a token, = the token's row of x times the expert's weight."""

    changes_rows = True

    x: Buffer
    chosen: Buffer
    weights: Buffer
    out: Buffer

    def reference(self, run: Context) -> None:
        run[self.out] = (run[self.x][:, None] * run[self.weights][..., None]).reshape(-1, self.out.width)


@dataclass(frozen=True)
class Combine(Operation):
    """out = the sum of x, which has a row for each expert of a token, times the experts' weights (+ residual).

    Without weights, it is the plain sum.
    """

    changes_rows = True

    x: Buffer
    chosen: Buffer
    weights: Buffer | None
    out: Buffer
    residual: Buffer | None = None

    def reference(self, run: Context) -> None:
        rows = run[self.x].reshape(-1, self.chosen.width, self.out.width)  # (T, used, width)
        total = (rows if self.weights is None else rows * run[self.weights][..., None]).sum(axis=1)
        run[self.out] = total if self.residual is None else total + run[self.residual]


@dataclass(frozen=True)
class SharedGate(Operation):
    """out = x * sigmoid(h @ weight), with one number for each row."""

    x: Buffer
    h: Buffer
    out: Buffer
    weight: str

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.weight: (self.h.width,)}

    def reference(self, run: Context) -> None:
        gate = run[self.h] @ run.weight(self.weight)
        run[self.out] = run[self.x] * (0.5 + 0.5 * np.tanh(0.5 * gate))[:, None]


def route(
    g: Tracer, logits: Buffer, routing: Routing, bias: str | None, scales: str | None = None
) -> tuple[Buffer, Buffer]:
    outs = (g.buffer(routing.used, type=GGMLType.I32), g.buffer(routing.used))
    return g.add(Route(logits, outs, routing, bias, scales)).outs


def expert_linear(
    g: Tracer, x: Buffer, chosen: Buffer, experts: int, weights: Sequence[str], widths: Sequence[int]
) -> tuple[Buffer, ...]:
    """Gives weight i an output of `widths[i]`; adds a bias if the file has one (NAME.bias for NAME.weight).

    Fused matrices, which are named several times, have none.
    """
    names = [name.removesuffix("weight") + "bias" for name in weights]
    biases = tuple(name if name in g.weights else None for name in names)
    outs = tuple(g.buffer(width, Rows.ASSIGNMENT, each=chosen.width) for width in widths)
    return g.add(ExpertLinear(x, chosen, outs, tuple(weights), biases, experts)).outs


def weigh(g: Tracer, x: Buffer, chosen: Buffer, weights: Buffer) -> Buffer:
    return g.add(Weigh(x, chosen, weights, g.buffer(x.width, Rows.ASSIGNMENT, each=chosen.width))).out


def combine(g: Tracer, x: Buffer, chosen: Buffer, weights: Buffer | None, residual: Buffer | None = None) -> Buffer:
    return g.add(Combine(x, chosen, weights, g.buffer(x.width), residual)).out


def shared_gate(g: Tracer, x: Buffer, h: Buffer, weight: str) -> Buffer:
    return g.add(SharedGate(x, h, g.like(x), weight)).out
