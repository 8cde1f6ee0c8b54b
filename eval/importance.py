"""Importance of the columns of weight matrices, collected as llama-imatrix does, so that files compare.

The tokens are cut into windows of `context` (BOS first in each where the vocabulary adds it); the squares of what each
matrix is multiplied with are summed over all tokens of all windows. On the way, perplexity as in eval/perplexity.py.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE
from lltool.engine.model import Model
from lltool.engine.observe import Observation
from lltool.quant.importance import Importance

Sums = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Collected:
    """What the first `done` windows have given, and what was there before them.

    `sums[name]` is (experts, columns), `counts[name]` (experts,). Windows `skipped` gave NaN or infinity and are not in
    the sums. `losses[i]` is the mean negative log-likelihood of a token of the i-th window that counts, `variances[i]`
    the variance; empty when perplexity is not wanted.
    """

    sums: Sums
    counts: Sums
    done: int = 0
    skipped: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    variances: tuple[float, ...] = ()

    def running(self) -> list[float]:
        """Perplexity after each window that counts."""
        means = np.cumsum(self.losses) / np.arange(1, len(self.losses) + 1)
        return [exp(mean) for mean in means]

    def error(self, scored: int) -> float:
        """One standard error of the last perplexity, where each window has `scored` tokens."""
        variance = np.mean(self.variances) + np.var(self.losses)
        return float(self.running()[-1] * sqrt(variance / max(1, len(self.losses) * scored - 1)))


def is_observed(name: str, process_output: bool) -> bool:
    """Whether llama-imatrix has an entry for a matrix: those of layers, and on request the output's (or, where that is
    the token embedding, its)."""
    return name.startswith("blk.") or (process_output and name in ("output.weight", "token_embd.weight"))


def collect(
    model: Model,
    windows: NDArray[np.int32],
    before: Collected,
    *,
    perplexity: bool = True,
    process_output: bool = False,
) -> Iterator[Collected]:
    """What is collected after each batch of windows, beginning behind those that `before` has.

    The model was loaded with `observe`. Sums grow in float32, as they stand in the file: going on from what was written
    gives the same bits as never having stopped.
    """
    model.executor.take_observations()  # of what ran before
    context = windows.shape[1]
    room = model.setup.pages // -(-context // PAGE)  # windows in the cache
    at_once = max(1, min(room, model.batch // context))
    for start in range(before.done, len(windows), at_once):
        before = _add(model, windows[start : start + at_once], before, perplexity, process_output)
        yield before


def _add(
    model: Model, windows: NDArray[np.int32], before: Collected, perplexity: bool, process_output: bool
) -> Collected:
    """Windows that do not all give numbers are taken one by one, to lose only those that do not."""
    seen, losses = _observe(model, windows, perplexity, process_output)
    fits = all((observation.sums < np.finfo(np.float32).max).all() for observation in seen.values())  # NaN does not
    if fits and np.isfinite(losses).all():
        sums, counts = dict(before.sums), dict(before.counts)
        for name, observation in seen.items():
            sums[name] = sums.get(name, np.float32(0)) + observation.sums.astype(np.float32)[None]
            counts[name] = counts.get(name, np.zeros(1, np.float32)) + np.float32(observation.rows)
        return replace(
            before,
            sums=sums,
            counts=counts,
            done=before.done + len(windows),
            losses=before.losses + tuple(losses.mean(axis=1).tolist() if perplexity else ()),
            variances=before.variances + tuple(losses.var(axis=1).tolist() if perplexity else ()),
        )
    if len(windows) == 1:
        return replace(before, done=before.done + 1, skipped=(*before.skipped, before.done))
    for window in windows:
        before = _add(model, window[None], before, perplexity, process_output)
    return before


def _observe(
    model: Model, windows: NDArray[np.int32], perplexity: bool, process_output: bool
) -> tuple[dict[str, Observation], NDArray[np.float64]]:
    """Runs windows side by side: what was observed, and the losses (windows, scored tokens) of their second halves."""
    count, context = windows.shape
    first = context // 2
    losses = np.zeros((count, context))
    sequences = [model.new_sequence() for _ in range(count)]
    step = min(context, max(1, model.batch // count))
    try:
        for start in range(0, context, step):
            stop = min(start + step, context)
            begin = start if process_output else max(start, first) if perplexity else stop
            rows = np.arange(begin, max(begin, stop))
            pieces = zip(sequences, windows[:, start:stop], strict=True)
            logits = model.forward([(sequence, piece, rows - start) for sequence, piece in pieces])
            if rows.size:  # asking for the head's results is what makes it run; the last token predicts nothing
                targets = windows[:, np.minimum(rows + 1, context - 1)]
                losses[:, rows] = -logits.score(targets.ravel()).reshape(targets.shape)
    finally:
        for sequence in sequences:
            sequence.free()
    return model.executor.take_observations(), losses[:, first : context - 1]


def estimate_stability(earlier: Importance, now: Importance) -> dict[str, float]:
    """For each matrix, how well its columns' order by importance agrees with that of endless text of the kind.

    The mean over n tokens differs from that over the first n - k of them by a variance that is k / (n - k) times its
    own, if windows come in no order; 1 - (Spearman's correlation), which grows with the variance, is scaled by that.
    """
    estimates = {}
    for name, old_sums in earlier.sums.items():
        n, before = float(now.counts[name].sum()), float(earlier.counts[name].sum())
        if 0 < before < n:
            pairs = zip(old_sums, now.sums[name], strict=True)
            distance = np.mean([1 - _rank_correlation(old, new) for old, new in pairs])
            estimates[name] = float(1 - distance * before / (n - before))
    return estimates


def _rank_correlation(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Spearman's, ties in order of place."""
    a, b = (np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64) for values in (x, y))
    spread = len(a) * (len(a) ** 2 - 1) / 6
    return float(1 - np.square(a - b).sum() / spread) if spread else 1.0


@dataclass(frozen=True)
class Coverage:
    """What importance there is of a model: `missing` matrices have none, `idle_experts` are how many of a matrix's
    experts saw no token, `idle_columns` how many columns were zero throughout."""

    entries: int
    missing: tuple[str, ...]
    idle_experts: Mapping[str, int] = field(default_factory=dict)
    idle_columns: Mapping[str, int] = field(default_factory=dict)


def report_coverage(importance: Importance, matrices: Collection[str]) -> Coverage:
    seen = {name: importance.sums[name][importance.counts[name] > 0] for name in importance.sums}
    idle_experts = {name: len(importance.counts[name]) - len(rows) for name, rows in seen.items()}
    idle_columns = {name: int((rows == 0).sum()) for name, rows in seen.items()}
    return Coverage(
        len(importance.sums),
        tuple(sorted(set(matrices) - importance.sums.keys())),
        {name: count for name, count in idle_experts.items() if count},
        {name: count for name, count in idle_columns.items() if count},
    )
