"""Perplexity of a model on a text by one of three methods that other tools use, so that figures are comparable.

- `llama` is llama-perplexity's method. It reads adjacent windows of `context` tokens; BOS replaces the first token of
  each where the vocabulary adds it. It scores the tokens with at least half a window before them or, with score `all`,
  every token but each window's first. A line end at the end of the text is dropped.
- `strided` is the method of llama-perplexity --ppl-stride. It reads a window every `stride` tokens and scores its last
  `stride` tokens. A window has `context` + `stride` / 2 tokens, rounded up to a multiple of 256 like llama.cpp's cache.
  BOS stands only before the text.
- `hf` is the method of Hugging Face's guide "Perplexity of fixed-length models". It reads a window of `context` tokens
  every `stride` tokens up to the end of the text, and scores the tokens that no earlier window has scored. BOS stands
  only before the text. As in the guide, the mean loss of a window's n labels counts n - 1 times; in the first window
  this is because its first label predicts nothing.

Bits per byte and per word divide the information of the scored tokens by the size of the text that these tokens stand
for. Bytes are those of UTF-8, without control tokens and without the space that some vocabularies put before a text.
Words are separated by ASCII white space, and a word belongs to the token that holds its first byte.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, log, log2, nan
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model
from lltool.engine.text.tokenizer import Tokenizer
from lltool.eval.common.intervals import mean_error
from lltool.eval.scoring.lockstep import Window, step_windows
from lltool.gguf.errors import InputError
from lltool.gguf.optional import to_frame

if TYPE_CHECKING:
    from pandas import DataFrame

MethodName = Literal["llama", "strided", "hf"]
Scored = Literal["half", "all"]

LARGEST_LOSS = log(sys.float_info.max)
_LLAMA_PADDING = 256

# Called after each window with the number of windows done, the total, and the running perplexity after each window.
PerplexityProgress = Callable[[int, int, Sequence[float]], None]


@dataclass(frozen=True)
class Method:
    """The windows of a text that are read, and the tokens in them that are scored."""

    name: MethodName = "llama"
    context: int = 512
    stride: int | None = None  # for strided and hf; half the context by default
    score: Scored = "half"  # for llama

    def __post_init__(self) -> None:
        for what, value, known in (("method", self.name, MethodName), ("score", self.score, Scored)):
            if value not in get_args(known):
                raise InputError(f"{what} {value!r}, wanted one of {', '.join(get_args(known))}")
        _check_context(self.context)
        if self.name == "llama" and self.stride is not None:
            raise InputError(f"stride {self.stride} goes with method strided or hf, not with llama")
        if self.name != "llama" and self.score != "half":
            raise InputError(
                f"score {self.score} goes with method llama; with {self.name} the stride decides what is scored"
            )
        if not 0 < self.hop <= self.context:
            raise InputError(f"stride of {self.hop} tokens, wanted 1 to the context of {self.context}")

    @property
    def hop(self) -> int:
        """Tokens from the start of a window to the start of the next."""
        return self.context if self.name == "llama" else self.context // 2 if self.stride is None else self.stride

    @property
    def window(self) -> int:
        """Tokens in a window, which is also the context that the model must be loaded with."""
        if self.name != "strided":
            return self.context
        return -(-(self.context + self.hop // 2) // _LLAMA_PADDING) * _LLAMA_PADDING

    def __str__(self) -> str:
        if self.name == "llama":
            scored = "second half scored" if self.score == "half" else "all but the first token scored"
            origin = "" if self.score == "half" else " with more scored"
            return (
                f"llama-perplexity's{origin}: windows of {self.context} tokens, {scored}, "
                "BOS first in each where the vocabulary adds it"
            )
        origin = "llama-perplexity's --ppl-stride" if self.name == "strided" else "Hugging Face's sliding window"
        return f"{origin}: windows of {self.window} tokens, one every {self.hop}, what is new in each scored"

    def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        return tokenizer.encode(text if self.name == "hf" else text.removesuffix("\n"))

    def cut(self, ids: Sequence[int], bos: int | None = None, name: str = "text") -> list[Window]:
        """Cuts a text's token ids into windows. Raises InputError if the text, called `name`, is too short."""
        if self.name == "llama":
            first = 1 if self.score == "all" else self.context // 2 + 1
            rows = cut_windows(ids, self.context, bos, name)
            return [Window(row, first, i * self.context) for i, row in enumerate(rows)]
        all_ids, size = np.asarray(ids, np.int32), self.window
        if self.name == "strided":
            _check_length(ids, 2 * size, name)
            starts = range(0, len(ids) - size, self.hop)
            return [Window(all_ids[start : start + size], size - self.hop, start) for start in starts]
        _check_length(ids, 3, name)
        windows = [Window(all_ids[:size], 1)]
        for start in range(self.hop, len(ids) - size + self.hop, self.hop):
            window = all_ids[start : start + size]
            labels = start + len(window) - (start - self.hop + size)  # past the end of the previous window
            first = max(1, len(window) - labels)
            windows.append(Window(window, first, start, (labels - 1) / max(1, len(window) - first)))
        return windows


@dataclass(frozen=True)
class Losses:
    """Each scored token's index in the text, its id, its natural log-probability, and its weight; (N,) each."""

    positions: NDArray[np.int64]
    tokens: NDArray[np.int32]
    log_probs: NDArray[np.float64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Perplexity over `scored` tokens, which stand for `bytes` and `words` of text; `error` is its standard error."""

    perplexity: float
    error: float
    scored: int
    bytes: int
    words: int

    @property
    def bits_per_byte(self) -> float:
        return self._bits / self.bytes if self.bytes else nan

    @property
    def bits_per_word(self) -> float:
        return self._bits / self.words if self.words else nan

    @property
    def _bits(self) -> float:
        return log2(self.perplexity) * self.scored


@dataclass(frozen=True)
class PerplexityResult(Estimate):
    """The perplexity of a text of `length` tokens; `running[i]` is the perplexity over windows 0 to i."""

    method: Method
    length: int
    running: tuple[float, ...] = field(repr=False)
    losses: Losses = field(repr=False)

    def to_pandas(self) -> "DataFrame":
        """A row for each scored token, with its position in the text, id, log-probability and weight. Needs pandas."""
        columns = {"position": self.losses.positions, "token": self.losses.tokens, "log_prob": self.losses.log_probs}
        return to_frame({**columns, "weight": self.losses.weights})


def perplexity(
    model: Model,
    text: str | Sequence[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    method: MethodName = "llama",
    stride: int | None = None,
    score: Scored = "half",
    name: str = "text",
    progress: PerplexityProgress | None = None,
) -> PerplexityResult:
    """Perplexity of `model` on `text` (or token ids), over its first `chunks` windows or all of them.

    The module's docstring defines the methods; the model must be loaded with a context of `Method(...).window`. Raises
    InputError if the text, called `name`, is too short, and if the model's loss is NaN or too large.
    """
    how = Method(method, context, stride, score)
    ids = how.encode(model.tokenizer, text) if isinstance(text, str) else text
    windows = how.cut(ids, bos_of(model), name)[:chunks]
    log_probs = np.empty(sum(window.scored for window in windows))
    running: list[float] = []
    total = count = 0.0
    end = 0
    for step in step_windows([model], windows):
        log_probs[step.places] = step.logits[0].score(step.targets)
        for window in windows[len(running) : step.windows] if step.ends else ():
            begin, end = end, end + window.scored
            total -= window.weight * log_probs[begin:end].sum()
            count += window.weight * window.scored
            mean = total / count
            if not mean < LARGEST_LOSS:  # true for NaN, too
                chunk = len(running) + 1
                raise InputError(f"{model.file.path}: the loss is {mean} in chunk {chunk}; is the file damaged?")
            running.append(exp(mean))
            if progress:
                progress(len(running), len(windows), running)
    losses = Losses(
        np.concatenate([np.arange(w.start + w.first, w.start + len(w.ids)) for w in windows]),
        np.concatenate([w.ids[w.first :] for w in windows]),
        log_probs,
        np.concatenate([np.full(w.scored, w.weight) for w in windows]),
    )
    sizes, words = measure_tokens(model.tokenizer, ids)
    value, error = perplexity_of(log_probs, losses.weights)
    covered = int(sizes[losses.positions].sum()), int(words[losses.positions].sum())
    return PerplexityResult(value, error, len(losses.tokens), *covered, how, len(ids), tuple(running), losses)


def pool(results: Sequence[PerplexityResult]) -> Estimate:
    """The estimate over the scored tokens of several texts together."""
    log_probs, weights = (
        np.concatenate([getattr(result.losses, what) for result in results]) for what in ("log_probs", "weights")
    )
    value, error = perplexity_of(log_probs, weights)
    scored, size, words = (sum(getattr(result, what) for result in results) for what in ("scored", "bytes", "words"))
    return Estimate(value, error, scored, size, words)


def perplexity_of(log_probs: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> tuple[float, float]:
    """The perplexity and its standard error."""
    mean, error = mean_error(-log_probs, weights)
    return exp(mean), exp(mean) * error


def measure_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The bytes of text that each token stands for, and the words that begin in it, (T,) each."""
    pieces = {id: b"" if tokenizer.is_control(id) else tokenizer.piece(id) for id in set(ids)}
    parts = [pieces[id] for id in ids]
    begin = next((i for i, part in enumerate(parts) if part), None)
    if begin is not None and tokenizer.add_space_prefix:
        parts[begin] = parts[begin].removeprefix(b" ")
    sizes = np.array([len(part) for part in parts], np.int64)
    is_space = np.isin(np.frombuffer(b"".join(parts), np.uint8), np.frombuffer(b" \t\n\r\f\v", np.uint8))
    begins = ~is_space & np.concatenate([[True], is_space])[: is_space.size]
    before = np.concatenate([[0], np.cumsum(begins)])  # words that begin before each byte
    ends = np.cumsum(sizes)
    return sizes, before[ends] - before[ends - sizes]


def bos_of(model: Model) -> int | None:
    """The BOS token if the vocabulary adds it to texts."""
    return model.tokenizer.bos if model.tokenizer.add_bos else None


def cut_windows(ids: Sequence[int], context: int, bos: int | None, name: str = "text") -> NDArray[np.int32]:
    """Whole windows of `context` tokens, (windows, context); unless it is None, `bos` replaces the first of each.

    Raises InputError for a context of less than 4 tokens, and if the text, called `name`, has less than two windows.
    """
    _check_context(context)
    _check_length(ids, 2 * context, name)
    count = len(ids) // context
    windows = np.array(ids[: count * context], dtype=np.int32).reshape(count, context)
    if bos is not None:
        windows[:, 0] = bos
    return windows


def _check_context(context: int) -> None:
    if context < 4:
        raise InputError(f"context of {context} tokens: wanted at least 4")


def _check_length(ids: Sequence[int], wanted: int, name: str) -> None:
    if len(ids) < wanted:
        windows = f" (two windows of {wanted // 2})" if wanted > 3 else ""
        raise InputError(
            f"{name}: {len(ids)} tokens, wanted at least {wanted}{windows}; give a longer text or a smaller context"
        )
