"""Perplexity of a model on a text, by one of three methods that others use, so that figures compare.

- `llama`, llama-perplexity's: windows of `context` tokens side by side, each beginning with BOS (in place of its first
  token) where the vocabulary adds it. Tokens are scored that have half a window or more before them, or, with score
  `all`, every token but each window's first. A line end at the text's end does not count.
- `strided`, that of llama-perplexity --ppl-stride: a window every `stride` tokens, whose last `stride` are scored. A
  window is `context` + `stride` / 2 tokens, rounded up to 256 as llama.cpp's cache is. BOS stands before the text only.
- `hf`, Hugging Face's guide "Perplexity of fixed-length models": a window of `context` every `stride` tokens, in which
  what no window before has scored is scored, to the end of the text. BOS stands before the text only. As in the guide,
  the mean loss of a window's n labels counts n - 1 times, in the first window because its first label predicts nothing.

Bits per byte and per word divide the scored tokens' information by the text that just these tokens stand for: UTF-8
bytes (control tokens have none, nor has the space that some vocabularies put before a text), and words, which are what
white space (of ASCII) separates and belong to the token that holds their first byte.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, log, log2, nan, sqrt
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model
from lltool.engine.tokenizer import Tokenizer
from lltool.eval.likelihood import score_tokens
from lltool.gguf.errors import InputError

MethodName = Literal["llama", "strided", "hf"]
Scored = Literal["half", "all"]

LARGEST_LOSS = log(sys.float_info.max)
_LLAMA_PADDING = 256

# Called after each window with windows done, windows in all, and the running perplexity after each window so far.
Progress = Callable[[int, int, Sequence[float]], None]


@dataclass(frozen=True)
class Window:
    """Token ids from place `start` of the text on, scored from `first` on; a token counts `weight` times."""

    ids: NDArray[np.int32]
    start: int
    first: int
    weight: float = 1.0


@dataclass(frozen=True)
class Method:
    """Which windows of a text are read, and which of their tokens are scored."""

    name: MethodName = "llama"
    context: int = 512
    stride: int | None = None  # of strided and hf; half the context by default
    score: Scored = "half"  # of llama

    def __post_init__(self) -> None:
        for what, value, known in (("method", self.name, MethodName), ("score", self.score, Scored)):
            if value not in get_args(known):
                raise InputError(f"{what} {value!r}, wanted one of {', '.join(get_args(known))}")
        _check_context(self.context)
        if self.name == "llama" and self.stride is not None:
            raise InputError(f"stride {self.stride} goes with method strided or hf, not with llama")
        if self.name != "llama" and self.score != "half":
            raise InputError(f"score {self.score} goes with method llama; the stride says what {self.name} scores")
        if not 0 < self.step <= self.context:
            raise InputError(f"stride of {self.step} tokens, wanted 1 to the context of {self.context}")

    @property
    def step(self) -> int:
        """Tokens from a window's start to the next."""
        return self.context if self.name == "llama" else self.context // 2 if self.stride is None else self.stride

    @property
    def window(self) -> int:
        """Tokens in a window, which is the context that a model has to be loaded with."""
        if self.name != "strided":
            return self.context
        return -(-(self.context + self.step // 2) // _LLAMA_PADDING) * _LLAMA_PADDING

    def __str__(self) -> str:
        if self.name == "llama":
            scored = "second half scored" if self.score == "half" else "all but the first token scored"
            origin = "" if self.score == "half" else " with more scored"
            return (
                f"llama-perplexity's{origin}: windows of {self.context} tokens, {scored}, "
                "BOS first in each where the vocabulary adds it"
            )
        origin = "llama-perplexity's --ppl-stride" if self.name == "strided" else "Hugging Face's sliding window"
        return f"{origin}: windows of {self.window} tokens, one every {self.step}, what is new in each scored"

    def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        return tokenizer.encode(text if self.name == "hf" else text.removesuffix("\n"))

    def cut(self, ids: Sequence[int], bos: int | None = None, name: str = "text") -> list[Window]:
        """The windows of a text's token ids. Raises InputError for a text, called `name`, that is too short."""
        if self.name == "llama":
            first = 1 if self.score == "all" else self.context // 2 + 1
            rows = cut_windows(ids, self.context, bos, name)
            return [Window(row, i * self.context, first) for i, row in enumerate(rows)]
        all_ids, size = np.asarray(ids, np.int32), self.window
        if self.name == "strided":
            _check_length(ids, 2 * size, name)
            starts = range(0, len(ids) - size, self.step)
            return [Window(all_ids[start : start + size], start, size - self.step) for start in starts]
        _check_length(ids, 3, name)
        windows = [Window(all_ids[:size], 0, 1)]
        for start in range(self.step, len(ids) - size + self.step, self.step):
            window = all_ids[start : start + size]
            labels = start + len(window) - (start - self.step + size)  # beyond the end of the window before
            first = max(1, len(window) - labels)
            windows.append(Window(window, start, first, (labels - 1) / max(1, len(window) - first)))
        return windows


@dataclass(frozen=True)
class Losses:
    """Of each scored token: its place in the text's tokens, its id, and ln of the probability it was given."""

    positions: NDArray[np.int64]
    tokens: NDArray[np.int32]
    log_probs: NDArray[np.float64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Over `scored` tokens, which stand for so many bytes and words; `error` is one standard error of `perplexity`."""

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
    """`running[i]` is the perplexity of windows 0 to i; the text has `length` tokens."""

    method: Method
    length: int
    running: tuple[float, ...] = field(repr=False)
    losses: Losses = field(repr=False)


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
    progress: Progress | None = None,
) -> PerplexityResult:
    """Perplexity of `model` on `text` (or token ids), over its first `chunks` windows or all of them.

    The methods are this module's; a model wants the context of `Method(...).window`. Raises InputError when the text,
    called `name`, is too short, and for a model that gives no numbers.
    """
    how = Method(method, context, stride, score)
    ids = how.encode(model.tokenizer, text) if isinstance(text, str) else text
    windows = how.cut(ids, bos_of(model), name)[:chunks]
    found: list[NDArray[np.float64]] = []
    running: list[float] = []
    total = count = 0.0
    scores = score_tokens(model, (w.ids[: w.first] for w in windows), (w.ids[w.first :] for w in windows))
    for window, log_probs in zip(windows, scores, strict=True):
        found.append(log_probs)
        total -= window.weight * log_probs.sum()
        count += window.weight * log_probs.size
        mean = total / count
        if not mean < LARGEST_LOSS:  # which NaN is not either
            raise InputError(f"{model.file.path}: the loss is {mean} in chunk {len(found)}; is the file damaged?")
        running.append(exp(mean))
        if progress:
            progress(len(running), len(windows), running)
    losses = Losses(
        np.concatenate([np.arange(w.start + w.first, w.start + len(w.ids)) for w in windows]),
        np.concatenate([w.ids[w.first :] for w in windows]),
        np.concatenate(found),
        np.concatenate([np.full(len(w.ids) - w.first, w.weight) for w in windows]),
    )
    sizes, words = measure_tokens(model.tokenizer, ids)
    mean, error = _mean_and_error([losses])
    covered = int(sizes[losses.positions].sum()), int(words[losses.positions].sum())
    return PerplexityResult(mean, error, len(losses.tokens), *covered, how, len(ids), tuple(running), losses)


def pool(results: Sequence[PerplexityResult]) -> Estimate:
    """The estimate over the scored tokens of several texts together."""
    mean, error = _mean_and_error([result.losses for result in results])
    scored, size, words = (sum(getattr(result, what) for result in results) for what in ("scored", "bytes", "words"))
    return Estimate(mean, error, scored, size, words)


def _mean_and_error(parts: Sequence[Losses]) -> tuple[float, float]:
    """Perplexity and its standard error."""
    weights = np.concatenate([losses.weights for losses in parts])
    losses = -np.concatenate([losses.log_probs for losses in parts])
    mean = np.average(losses, weights=weights)
    variance = np.average((losses - mean) ** 2, weights=weights)
    return exp(mean), exp(mean) * sqrt(variance / max(1, len(losses) - 1))


def measure_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bytes of the text that each of its tokens stands for, and words that begin in it, (T,) each."""
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
    """The token that windows begin with, where the vocabulary wants it."""
    return model.tokenizer.bos if model.tokenizer.add_bos else None


def cut_windows(ids: Sequence[int], context: int, bos: int | None, name: str = "text") -> NDArray[np.int32]:
    """Whole windows of `context` tokens, (windows, context), each starting with `bos` if there is one."""
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
