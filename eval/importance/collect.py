"""Collects the importance of the columns of weight matrices as llama-imatrix does, so that files are comparable.

The tokens are cut into windows of `context` (BOS first in each where the vocabulary adds it), and the squares of each
matrix's inputs are summed over all tokens of all windows. Perplexity is computed in the same pass, as in
eval/scoring/perplexity.py.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

from lltool.engine.executor import Observation
from lltool.engine.model import Model
from lltool.eval.common.intervals import standard_error
from lltool.eval.scoring.lockstep import Window, step_windows
from lltool.quant.importance import Importance

Sums = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Collected:
    """The sums over the first `done` windows, added to those that the job started with.

    `sums[name]` is (experts, columns), `counts[name]` (experts,). The windows `skipped` gave NaN or infinity and are
    not in the sums. `losses[i]` is the mean negative log-likelihood of a token in the i-th window that was not skipped,
    and `variances[i]` its variance; both are empty if perplexity is not requested.
    """

    sums: Sums
    counts: Sums
    done: int = 0
    skipped: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    variances: tuple[float, ...] = ()

    def running(self) -> list[float]:
        """Perplexity after each window that was not skipped."""
        means = np.cumsum(self.losses) / np.arange(1, len(self.losses) + 1)
        return [exp(mean) for mean in means]

    def error(self, scored: int) -> float:
        """One standard error of the last perplexity, where each window has `scored` tokens."""
        variance = np.mean(self.variances) + np.var(self.losses)
        return float(self.running()[-1] * standard_error(sqrt(variance), len(self.losses) * scored))


def is_observed(name: str, process_output: bool) -> bool:
    """Whether llama-imatrix has an entry for a matrix: it has those in layers and, on request, the output matrix (or
    the token embedding, if tied)."""
    return name.startswith("blk.") or (process_output and name in ("output.weight", "token_embd.weight"))


def collect(
    model: Model,
    windows: NDArray[np.int32],
    before: Collected,
    *,
    perplexity: bool = True,
    process_output: bool = False,
) -> Iterator[Collected]:
    """Yields what is collected after each batch of windows, starting after the windows that `before` has.

    The model must have been loaded with `observe`. Sums are float32 as in the file, so a resumed job gives the same
    bits as an uninterrupted one.
    """
    model.executor.take_observations()  # discards those of earlier runs
    for found in _observe(model, windows[before.done :], perplexity, process_output):
        count = len(found.losses)
        if found.is_finite or count == 1:
            before = _add(before, found, perplexity)
        else:  # runs them one by one, so that only those that give NaN or infinity are skipped
            for window in windows[before.done : before.done + count]:
                (alone,) = _observe(model, window[None], perplexity, process_output)
                before = _add(before, alone, perplexity)
        yield before


@dataclass(frozen=True)
class _Observed:
    """What some windows gave: observations, and the losses (windows, scored tokens) of their second halves."""

    seen: Mapping[str, Observation]
    losses: NDArray[np.float64]

    @property
    def is_finite(self) -> bool:
        in_range = all((found.sums < np.finfo(np.float32).max).all() for found in self.seen.values())  # NaN is not
        return bool(in_range and np.isfinite(self.losses).all())


def _add(before: Collected, found: _Observed, perplexity: bool) -> Collected:
    """Adds windows to the sums, or skips the one window that gave NaN or infinity."""
    if not found.is_finite:
        return replace(before, done=before.done + 1, skipped=(*before.skipped, before.done))
    sums, counts = dict(before.sums), dict(before.counts)
    for name, observation in found.seen.items():
        sums[name] = sums.get(name, np.float32(0)) + observation.sums.astype(np.float32)
        counts[name] = counts.get(name, np.float32(0)) + observation.rows.astype(np.float32)
    return replace(
        before,
        sums=sums,
        counts=counts,
        done=before.done + len(found.losses),
        losses=before.losses + tuple(found.losses.mean(axis=1).tolist() if perplexity else ()),
        variances=before.variances + tuple(found.losses.var(axis=1).tolist() if perplexity else ()),
    )


def _observe(model: Model, windows: NDArray[np.int32], perplexity: bool, process_output: bool) -> Iterator[_Observed]:
    """Runs windows; yields what those that ran together gave. The head is observed for the rows that are scored."""
    context = windows.shape[1]
    half = context // 2
    first = 0 if process_output else half if perplexity else context  # row with logits
    # The last token is read too. It predicts nothing, so it stands in for what it would predict.
    read = [Window(np.append(window, window[-1]), first + 1) for window in windows]
    losses = np.empty((len(windows), context - first))
    done = 0
    for step in step_windows([model], read):
        if step.targets.size:
            losses.flat[step.places] = -step.logits[0].score(step.targets)
        if step.ends:
            second_halves = losses[done : step.windows, half - first : context - 1 - first]
            yield _Observed(model.executor.take_observations(), second_halves)
            done = step.windows


def estimate_stability(earlier: Importance, now: Importance) -> dict[str, float]:
    """Estimates for each matrix the rank correlation of its columns' importance with that from endless similar text.

    If windows come in random order, the difference between the mean over n tokens and the mean over the first n - k
    of them has k / (n - k) times the variance of the former. 1 - (Spearman's correlation) grows with the variance, so
    it is divided by this ratio.
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
    """Spearman's correlation; ties are ranked in order of position."""
    a, b = (np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64) for values in (x, y))
    spread = len(a) * (len(a) ** 2 - 1) / 6
    return float(1 - np.square(a - b).sum() / spread) if spread else 1.0


@dataclass(frozen=True)
class Coverage:
    """The matrices of a model that have importance, `entries` of them, and those `missing`. `idle_experts` is how many
    of a matrix's experts saw no token, `idle_columns` how many of its columns were always zero. `rarest` is of all
    experts the one that saw the fewest tokens: its matrix, its number, its tokens, and the mean of that matrix."""

    entries: int
    missing: tuple[str, ...]
    idle_experts: Mapping[str, int] = field(default_factory=dict)
    idle_columns: Mapping[str, int] = field(default_factory=dict)
    rarest: tuple[str, int, int, float] | None = None  # None: the model has no experts


def report_coverage(importance: Importance, matrices: Collection[str]) -> Coverage:
    seen = {name: importance.sums[name][importance.counts[name] > 0] for name in importance.sums}
    idle_experts = {name: len(importance.counts[name]) - len(rows) for name, rows in seen.items()}
    idle_columns = {name: int((rows == 0).sum()) for name, rows in seen.items()}
    return Coverage(
        len(importance.sums),
        tuple(sorted(set(matrices) - importance.sums.keys())),
        {name: count for name, count in idle_experts.items() if count},
        {name: count for name, count in idle_columns.items() if count},
        find_rarest(importance.counts),
    )


def find_rarest(counts: Sums) -> tuple[str, int, int, float] | None:
    """The expert that saw the fewest tokens, as in `Coverage`."""
    stacks = {name: seen for name, seen in counts.items() if len(seen) > 1}
    if not stacks:
        return None
    name = min(stacks, key=lambda name: float(stacks[name].min()))
    seen = stacks[name]
    return name, int(seen.argmin()), int(seen.min()), float(seen.mean())
