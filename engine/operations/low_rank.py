"""What LoRA adapters add to products with matrices, with scales that each sequence of a batch chooses for itself.

Source: Hu et al. 2021 (LoRA); rows of several adapters in one batch are those of Punica (Chen et al. 2023).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lltool.engine.program import Buffer, Calls, Cost, Operation, Rows, Weight
from lltool.engine.reference.context import Context


@dataclass(frozen=True)
class Update:
    """The two factors of an adapter for one output: names of `down` (in, rank) and `up` (rank, out), or of stacks.

    `adapter` is its number among those of the model, and `factor` its scale besides the one that a sequence chooses.
    """

    adapter: int
    factor: float
    output: int
    down: str
    up: str


@dataclass(frozen=True)
class LowRank(Operation):
    """outs[i] += scale * (x @ down) @ up for each update of output i, where the scale is that of the row's sequence.

    It follows the operation that makes `outs` from `x` and changes them in their place. With `chosen`, rows are those
    of experts, and the factors are stacks. A row whose scale is 0 stays as it is, bit for bit.
    """

    changes_rows = True

    x: Buffer
    outs: tuple[Buffer, ...]
    updates: tuple[Update, ...]
    chosen: Buffer | None = None

    @property
    def title(self) -> str:
        return "adapters"

    def cost(self, calls: Calls, weights: Mapping[str, Weight]) -> Cost:
        """As if every row had every adapter."""
        if self.chosen is not None:
            return Cost()
        rows, cost = calls.rows[self.rows], Cost()
        for weight in (weights[name] for update in self.updates for name in (update.down, update.up)):
            cost += Cost(len(rows) * weight.data.nbytes, 0, float(weight.rows * weight.columns * sum(rows)))
        return cost

    def reference(self, run: Context) -> None:
        x, owners = run[self.x], None
        scales = run.scales(self.outs[0].rows)  # (rows, adapters)
        if self.chosen is not None:
            owners = run[self.chosen].astype(np.int64).reshape(-1)  # (T * used,)
            scales = scales.repeat(self.chosen.width, axis=0)
            if self.x.rows is not Rows.ASSIGNMENT:
                x = x.repeat(self.chosen.width, axis=0)
        for update in self.updates:
            out, by = self.outs[update.output], (scales[:, update.adapter] * update.factor).astype(x.dtype)
            down, up, rows = run.weight(update.down), run.weight(update.up), np.flatnonzero(by)
            changed = run[out].copy()
            if owners is None:
                changed[rows] += (by[rows, None] * (x[rows] @ down)) @ up
            else:
                hidden = np.einsum("tk,tkr->tr", x[rows], down[owners[rows]])
                changed[rows] += np.einsum("tr,trn->tn", by[rows, None] * hidden, up[owners[rows]])
            run[out] = changed


@dataclass(frozen=True)
class LowRankEmbed(Operation):
    """out += scale * down[token] @ up for each update, after the embedding; `down` is (vocabulary, rank)."""

    outs: tuple[Buffer]
    updates: tuple[Update, ...]

    @property
    def title(self) -> str:
        return "adapters"

    def reference(self, run: Context) -> None:
        (out,) = self.outs
        scales = run.scales(out.rows)
        for update in self.updates:
            by = (scales[:, update.adapter] * update.factor).astype(run[out].dtype)
            rows, changed = np.flatnonzero(by), run[out].copy()
            chosen = run.weight(update.down)[run.batch.tokens[rows]]
            changed[rows] += (by[rows, None] * chosen) @ run.weight(update.up)
            run[out] = changed
