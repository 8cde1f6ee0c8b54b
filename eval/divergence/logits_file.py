"""Writes and reads llama-perplexity's file of a model's probabilities (--kl-divergence-base).

The file holds `_logits_`, the context, the vocabulary size and the number of chunks (int32 each), the text's tokens
(int32; the first token of a chunk is not yet replaced by BOS), and a record for each scored token. A record is the
scale and the lowest ln P (float32 each) and a uint16 for each token of the vocabulary, padded to an even number:
ln P = lowest + scale * number. Probabilities below e^-16 times that of the best guess are rounded up to it. The format
was read from llama.cpp's tools/perplexity.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model
from lltool.engine.reference.compare import Compared
from lltool.eval.common.steps import CountProgress
from lltool.eval.divergence.divergence import DivergenceProgress, DivergenceResult, compare_windows
from lltool.eval.scoring.lockstep import WindowStep, score_second_halves, scored_tokens, step_windows
from lltool.eval.scoring.perplexity import bos_of, cut_windows
from lltool.gguf.errors import InputError
from lltool.gguf.mapped import MappedFile
from lltool.gguf.names import describe_os_error
from lltool.gguf.regular_file import open_regular
from lltool.gguf.whole_file import whole_file

MAGIC = b"_logits_"

_HEADER = len(MAGIC) + 3 * 4
_RANGE = 16.0  # range of ln P below the best guess that a record can store
_LOWEST = -16.0  # llama-perplexity leaves out tokens with a smaller ln P, because they may be rounded up
_ZERO_LOGIT = -1e4  # a logit with a probability of 0


@dataclass(frozen=True)
class LogitsFile:
    """The text's `tokens` (chunks, context) and the memory-mapped records `rows` (N, 4 + vocabulary, padded)."""

    path: Path
    vocabulary: int
    tokens: NDArray[np.int32]
    rows: NDArray[np.uint16]
    mapped: MappedFile

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1])

    def first(self, chunks: int | None) -> Self:
        """The part of the file with the first chunks only (None: all)."""
        tokens = self.tokens[:chunks]
        return replace(self, tokens=tokens, rows=self.rows[: len(tokens) * scored_tokens(self.context)])

    def log_probs(self, places: NDArray[np.integer] | slice) -> NDArray[np.float32]:
        """ln P of all tokens at scored tokens `places`, (n, V). Raises FileChanged if the file has changed since."""
        rows = self.rows[places]
        self.mapped.check_unchanged()
        scale, lowest = np.ascontiguousarray(rows[:, :4]).view(np.float32).T[:, :, None]
        return np.asarray(rows[:, 4 : 4 + self.vocabulary] * scale + lowest, np.float32)


def write_logits_file(
    path: str | Path,
    model: Model,
    ids: Sequence[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    name: str = "text",
    progress: CountProgress | None = None,
) -> NDArray[np.float64]:
    """Writes the file for the text of token ids `ids`, whole or not at all; returns ln P of the scored tokens, (N,).

    The file takes two bytes for each scored token and each token of the vocabulary. Raises InputError as `cut_windows`
    does, and for a file that cannot be written.
    """
    path = Path(path)
    windows = cut_windows(ids, context, bos_of(model), name)[:chunks]
    tokens = np.array(ids[: windows.size], "<i4")
    scores = np.empty(len(windows) * scored_tokens(context))
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            file.write(MAGIC + np.array([context, model.config.vocab, len(windows)], "<i4").tobytes())
            file.write(tokens.tobytes())
            for step in step_windows([model], score_second_halves(windows)):
                for start, block, found in step.logits[0].scored_blocks(step.targets):
                    scores[step.places[start : start + len(block)]] = found
                    log_sums = block[np.arange(len(block)), step.targets[start : start + len(block)]] - found
                    file.write(_encode(block, log_sums).tobytes())
                if progress and step.ends:
                    progress(step.windows, len(windows))
    except OSError as error:
        raise InputError(describe_os_error(error, path)) from None
    return scores


def open_logits_file(path: str | Path) -> LogitsFile:
    """Maps a file into memory. Raises InputError for a file that is truncated, damaged or of another format."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            start = file.read(_HEADER)
            if not start.startswith(MAGIC) or len(start) < _HEADER:
                raise InputError(f"{path}: not a file of llama-perplexity's logits; wanted one of --kl-divergence-base")
            mapped = MappedFile(file)
    except OSError as error:
        raise InputError(describe_os_error(error, path)) from None
    data = mapped.data
    context, vocabulary, chunks = data[len(MAGIC) : _HEADER].view("<i4").tolist()
    if context < 4 or vocabulary < 1 or chunks < 1:
        raise InputError(
            f"{path}: {chunks} chunks of {context} tokens of a vocabulary of {vocabulary}; the file is damaged"
        )
    width = 4 + 2 * ((vocabulary + 1) // 2)
    begin, records = _HEADER + 4 * chunks * context, chunks * scored_tokens(context)
    size = begin + 2 * width * records
    if len(data) != size:
        raise InputError(
            f"{path}: {len(data)} bytes, but {chunks} chunks of {context} tokens take {size}; write it again"
        )
    tokens = data[_HEADER:begin].view("<i4").reshape(chunks, context)
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise InputError(f"{path}: has a token outside its vocabulary of {vocabulary}; the file is damaged")
    mapped.check_unchanged()
    return LogitsFile(path, vocabulary, tokens, data[begin:].view("<u2").reshape(records, width), mapped)


def compare_with_file(file: LogitsFile, model: Model, progress: DivergenceProgress | None = None) -> DivergenceResult:
    """The divergence of `model` from the file's probabilities, as llama-perplexity --kl-divergence computes it.

    Tokens with ln P of at most -16 are left out, so the sum does not cover all of P: it can be a little below the
    divergence, and even below 0. Raises InputError for a model with a vocabulary of another size.
    """
    windows = windows_of(file, model)

    def compare_step(step: WindowStep) -> NDArray[np.float64]:
        rows = step.logits[0].compare(_Stored(file, step.places), step.targets)
        # The rows' softmax is P divided by the probability mass that was kept; ln P of the best guess gives that mass.
        kept = _log_prob_at(file, step.places, rows[:, Compared.BASE_TOP].astype(np.int64))
        log_mass = kept - rows[:, Compared.BASE_TOP_LOG_PROB]
        rows[:, Compared.DIVERGENCE] = np.exp(log_mass) * (rows[:, Compared.DIVERGENCE] + log_mass)
        rows[:, Compared.BASE_LOG_PROB] = _log_prob_at(file, step.places, step.targets)
        rows[:, Compared.BASE_TOP_LOG_PROB] = kept
        return rows

    return compare_windows([model], windows, compare_step, progress)


def windows_of(file: LogitsFile, model: Model) -> NDArray[np.int32]:
    """The file's chunks as the model reads them, each beginning with BOS where the vocabulary adds it.

    Raises InputError for a model with a vocabulary of another size; the file records nothing else about it.
    """
    if file.vocabulary != model.config.vocab:
        raise InputError(
            f"{file.path}: has a vocabulary of {file.vocabulary} tokens, but {model.file.path} has {model.config.vocab}"
        )
    windows = file.tokens.astype(np.int32)
    if (bos := bos_of(model)) is not None:
        windows[:, 0] = bos
    return windows


@dataclass(frozen=True)
class _Stored:
    """Rows of a file in the form of a model's logits."""

    file: LogitsFile
    places: NDArray[np.int64]
    head_rows: int = 1 << 30

    @property
    def rows(self) -> int:
        return len(self.places)

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        log_probs = self.file.log_probs(self.places[start:stop])
        log_probs[log_probs <= _LOWEST] = _ZERO_LOGIT
        return log_probs


def _log_prob_at(file: LogitsFile, places: NDArray[np.int64], tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    scale, lowest = np.ascontiguousarray(file.rows[places, :4]).view(np.float32).T
    return np.asarray(file.rows[places, 4 + tokens] * scale + lowest, np.float64)


def _encode(block: NDArray[np.float32], log_sums: NDArray[np.float64]) -> NDArray[np.uint16]:
    """The records of logits (n, V) whose exponentials sum to e^log_sums, (n, 4 + V) with V padded to an even number."""
    highest = block.max(axis=1)
    lowest = np.maximum(block.min(axis=1), highest - np.float32(_RANGE))
    scale = (highest - lowest) / np.float32(65535)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    count, vocabulary = block.shape
    out = np.zeros((count, 4 + 2 * ((vocabulary + 1) // 2)), "<u2")
    out[:, :4] = np.stack([scale, (lowest - log_sums).astype(np.float32)], axis=1).view(np.uint16)
    numbers = np.rint(np.maximum(block - lowest[:, None], 0) * inverse[:, None])
    out[:, 4 : 4 + vocabulary] = np.minimum(numbers, 65535)
    return out
