"""Kullback-Leibler divergence of a model from the one it was made of, as llama-perplexity --kl-divergence measures it.

Both models read the same windows; in the second half of each, the distribution that the changed model gives the next
token is held against the base model's. Unlike a difference of perplexities, it cannot be good by luck.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from lltool.engine.compare import Compared
from lltool.engine.model import Model
from lltool.eval.lockstep import Step, scored_tokens, step_windows
from lltool.eval.perplexity import Method, bos_of, cut_windows
from lltool.eval.provenance import vocabulary_sha256
from lltool.gguf.errors import InputError


@dataclass(frozen=True)
class DivergenceResult:
    """What a base model P and a model Q say of N scored tokens of `windows`, (windows, context) as both read them.

    `table` is (N, 7) with the columns of `Compared`; the properties name them. `tokens[i]` is the divergence at scored
    token i, in nats, so that results on one text can be compared in pairs.
    """

    windows: NDArray[np.int32]
    table: NDArray[np.float64]

    def first(self, windows: int) -> "DivergenceResult":
        """The same of the first windows only."""
        return DivergenceResult(self.windows[:windows], self.table[: windows * scored_tokens(self.windows.shape[1])])

    @property
    def mean(self) -> float:
        return float(self.tokens.mean())

    @property
    def error(self) -> float:
        """One standard error of the mean."""
        return float(self.tokens.std() / sqrt(max(1, len(self.tokens) - 1)))

    @property
    def same_top(self) -> float:
        """The share of tokens for which both models have the same best guess."""
        return float((self.base_top == self.top).mean())

    @property
    def tokens(self) -> NDArray[np.float64]:
        return self.table[:, Compared.DIVERGENCE]

    @property
    def base_log_probs(self) -> NDArray[np.float64]:
        """ln P of the token that comes."""
        return self.table[:, Compared.BASE_LOG_PROB]

    @property
    def log_probs(self) -> NDArray[np.float64]:
        """ln Q of the token that comes."""
        return self.table[:, Compared.LOG_PROB]

    @property
    def base_top(self) -> NDArray[np.int64]:
        return self.table[:, Compared.BASE_TOP].astype(np.int64)

    @property
    def top(self) -> NDArray[np.int64]:
        return self.table[:, Compared.TOP].astype(np.int64)


# Called with windows done, windows in all and the result of those that are done.
Progress = Callable[[int, int, DivergenceResult], None]


def divergence(
    base: Model,
    model: Model,
    text: str | Sequence[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    name: str = "text",
    progress: Progress | None = None,
) -> DivergenceResult:
    """The divergence of `model` from `base` on `text` (or token ids), over its first `chunks` windows or all of them.

    Raises InputError when the text, called `name`, is shorter than two windows, and for models of two vocabularies.
    """
    return divergences(base, [model], text, context=context, chunks=chunks, name=name, progress=progress)[0]


def divergences(
    base: Model,
    models: Sequence[Model],
    text: str | Sequence[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    name: str = "text",
    progress: Progress | None = None,
) -> list[DivergenceResult]:
    """That of several models, for which the base reads the text once; `progress` is told of the last of them."""
    for model in models:
        check_vocabularies(base, model)
    ids = Method(context=context).encode(base.tokenizer, text) if isinstance(text, str) else text
    windows = cut_windows(ids, context, bos_of(base), name)[:chunks]
    others = [_empty_result(windows) for _ in models[:-1]]

    def compare(step: Step) -> NDArray[np.float64]:
        expected, *found = step.logits
        for model, logits, result in zip(models, found, others, strict=False):
            result.table[step.places] = _check_finite(logits.compare(expected, step.targets), model, step)
        return found[-1].compare(expected, step.targets)

    return [*others, compare_windows((base, *models), windows, compare, progress)]


def compare_windows(
    models: Sequence[Model],
    windows: NDArray[np.int32],
    compare: Callable[[Step], NDArray[np.float64]],
    progress: Progress | None = None,
) -> DivergenceResult:
    """Runs `windows` through `models` in step; `compare` makes a step's rows of the table.

    Raises InputError where a divergence is not a number.
    """
    result = _empty_result(windows)
    for step in step_windows(models, windows):
        result.table[step.places] = _check_finite(compare(step), models[-1], step)
        if progress and step.ends:
            progress(step.windows, len(windows), result.first(step.windows))
    return result


def _empty_result(windows: NDArray[np.int32]) -> DivergenceResult:
    return DivergenceResult(windows, np.empty((len(windows) * scored_tokens(windows.shape[1]), len(Compared))))


def _check_finite(rows: NDArray[np.float64], model: Model, step: Step) -> NDArray[np.float64]:
    if not np.isfinite(rows).all():
        raise InputError(
            f"{model.file.path}: not a number among the logits of chunk {step.windows}; is the file damaged?"
        )
    return rows


def check_vocabularies(base: Model, model: Model) -> None:
    """Raises InputError unless each token id means the same to both."""
    if base.config.vocab != model.config.vocab:
        raise InputError(
            f"{model.file.path}: a vocabulary of {model.config.vocab} tokens, but {base.file.path} has "
            f"{base.config.vocab}; only models of one vocabulary can be compared"
        )
    if vocabulary_sha256(base.tokenizer) != vocabulary_sha256(model.tokenizer):
        pairs = enumerate(zip(base.tokenizer.tokens, model.tokenizer.tokens, strict=False))
        found = [f"token {id} is {y!a}, but {x!a} in {base.file.path}" for id, (x, y) in pairs if x != y]
        difference = found[0] if found else f"more or fewer tokens than in {base.file.path}"
        raise InputError(f"{model.file.path}: {difference}; only models of one vocabulary can be compared")
