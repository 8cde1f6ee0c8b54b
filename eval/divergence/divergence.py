"""Kullback-Leibler divergence of a model from its base model, as llama-perplexity --kl-divergence measures it.

Both models read the same windows. In the second half of each window, the model's distribution over the next token is
compared with the base model's. Unlike a difference of perplexities, the divergence cannot be good by chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model
from lltool.engine.reference.compare import Compared
from lltool.eval.common.intervals import mean_error
from lltool.eval.common.provenance import vocabulary_sha256
from lltool.eval.scoring.lockstep import WindowStep, score_second_halves, scored_tokens, step_windows
from lltool.eval.scoring.perplexity import Method, bos_of, cut_windows
from lltool.gguf.errors import InputError
from lltool.gguf.optional import to_frame

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class DivergenceResult:
    """Predictions of a base model P and a model Q for N scored tokens of `windows`, (windows, context) as read by both.

    `table` is (N, 7) with the columns of `Compared`; the properties name them. `tokens[i]` is the divergence at scored
    token i in nats, so that results on the same text can be compared token by token.
    """

    windows: NDArray[np.int32]
    table: NDArray[np.float64]

    def first(self, windows: int) -> "DivergenceResult":
        """The result for the first windows only."""
        return DivergenceResult(self.windows[:windows], self.table[: windows * scored_tokens(self.windows.shape[1])])

    @property
    def mean(self) -> float:
        return float(self.tokens.mean())

    @property
    def error(self) -> float:
        """One standard error of the mean."""
        return mean_error(self.tokens)[1]

    @property
    def same_top(self) -> float:
        """The share of tokens for which both models have the same best guess."""
        return float((self.base_top == self.top).mean())

    @property
    def tokens(self) -> NDArray[np.float64]:
        return self.table[:, Compared.DIVERGENCE]

    @property
    def base_log_probs(self) -> NDArray[np.float64]:
        """ln P of the token that really comes next."""
        return self.table[:, Compared.BASE_LOG_PROB]

    @property
    def log_probs(self) -> NDArray[np.float64]:
        """ln Q of the token that really comes next."""
        return self.table[:, Compared.LOG_PROB]

    @property
    def base_top(self) -> NDArray[np.int64]:
        return self.table[:, Compared.BASE_TOP].astype(np.int64)

    @property
    def top(self) -> NDArray[np.int64]:
        return self.table[:, Compared.TOP].astype(np.int64)

    def to_pandas(self) -> "DataFrame":
        """A row for each scored token, with `table`'s columns; the best guesses are token ids. Needs pandas."""
        frame = to_frame({column.name.lower(): self.table[:, column] for column in Compared})
        return frame.astype({"base_top": "int64", "top": "int64"})


# Called with the number of windows done, the total, and the result for the windows done.
DivergenceProgress = Callable[[int, int, DivergenceResult], None]


def divergence(
    base: Model,
    model: Model,
    text: str | Sequence[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    name: str = "text",
    progress: DivergenceProgress | None = None,
) -> DivergenceResult:
    """The divergence of `model` from `base` on `text` (or token ids), over its first `chunks` windows or all of them.

    Raises InputError if the text, called `name`, is shorter than two windows, and if the models' vocabularies differ.
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
    progress: DivergenceProgress | None = None,
) -> list[DivergenceResult]:
    """The divergences of several models; the base reads the text once, and `progress` gets the last model's results."""
    for model in models:
        if model is base:
            raise InputError(
                f"{model.file.path}: is base and model at once; wanted two that are loaded each on its own"
            )
        check_vocabularies(base, model)
    ids = Method(context=context).encode(base.tokenizer, text) if isinstance(text, str) else text
    windows = cut_windows(ids, context, bos_of(base), name)[:chunks]
    others = [_empty_result(windows) for _ in models[:-1]]

    def compare(step: WindowStep) -> NDArray[np.float64]:
        expected, *found = step.logits
        for model, logits, result in zip(models, found, others, strict=False):
            result.table[step.places] = _check_finite(logits.compare(expected, step.targets), model, step)
        return found[-1].compare(expected, step.targets)

    return [*others, compare_windows((base, *models), windows, compare, progress)]


def compare_windows(
    models: Sequence[Model],
    windows: NDArray[np.int32],
    compare: Callable[[WindowStep], NDArray[np.float64]],
    progress: DivergenceProgress | None = None,
) -> DivergenceResult:
    """Runs `windows` through `models` in lockstep; `compare` computes the table rows of a step.

    Raises InputError if a value is NaN or infinite.
    """
    result = _empty_result(windows)
    for step in step_windows(models, score_second_halves(windows)):
        result.table[step.places] = _check_finite(compare(step), models[-1], step)
        if progress and step.ends:
            progress(step.windows, len(windows), result.first(step.windows))
    return result


def _empty_result(windows: NDArray[np.int32]) -> DivergenceResult:
    return DivergenceResult(windows, np.empty((len(windows) * scored_tokens(windows.shape[1]), len(Compared))))


def _check_finite(rows: NDArray[np.float64], model: Model, step: WindowStep) -> NDArray[np.float64]:
    if not np.isfinite(rows).all():
        raise InputError(
            f"{model.file.path}: NaN or infinity in the logits of chunk {step.windows}; is the file damaged?"
        )
    return rows


def check_vocabularies(base: Model, model: Model) -> None:
    """Raises InputError unless every token id stands for the same token in both models."""
    if base.config.vocab != model.config.vocab:
        raise InputError(
            f"{model.file.path}: a vocabulary of {model.config.vocab} tokens, but {base.file.path} has "
            f"{base.config.vocab}; only models with the same vocabulary can be compared"
        )
    if vocabulary_sha256(base.tokenizer) != vocabulary_sha256(model.tokenizer):
        pairs = enumerate(zip(base.tokenizer.tokens, model.tokenizer.tokens, strict=False))
        found = [f"token {id} is {y!a}, but {x!a} in {base.file.path}" for id, (x, y) in pairs if x != y]
        difference = found[0] if found else f"more or fewer tokens than in {base.file.path}"
        raise InputError(f"{model.file.path}: {difference}; only models with the same vocabulary can be compared")
