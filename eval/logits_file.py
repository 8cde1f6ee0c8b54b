"""llama-perplexity's file of a model's probabilities (--kl-divergence-base), written and read.

It holds `_logits_`, the context, the vocabulary's size and the number of chunks (int32 each), the text's tokens
(int32; a chunk's first is not yet replaced by BOS), and a record for each scored token: scale and lowest ln P (float32
each) and a uint16 for each token of the vocabulary, padded to an even number: ln P = lowest + scale * number. What is
less likely than e^-16 times the best guess is rounded up to that. Read from llama.cpp's tools/perplexity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lltool.engine.compare import Compared
from lltool.engine.model import Model
from lltool.eval.divergence import DivergenceResult, Progress, compare_windows
from lltool.eval.lockstep import Step, scored_tokens, step_windows
from lltool.eval.perplexity import bos_of, cut_windows
from lltool.gguf.errors import InputError
from lltool.gguf.whole_file import whole_file

MAGIC = b"_logits_"

_HEADER = len(MAGIC) + 3 * 4
_RANGE = 16.0  # ln of the best guess's probability over the least that is told apart
_LEAST = -16.0  # llama-perplexity leaves out what has a smaller ln P, for it may be rounded up
_NOTHING = -1e4  # a logit of no probability


@dataclass(frozen=True)
class LogitsFile:
    """`tokens` (chunks, context) are the text's; `rows` (N, 4 + vocabulary, padded) the records, still in the file."""

    path: Path
    vocabulary: int
    tokens: NDArray[np.int32]
    rows: NDArray[np.uint16]

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1])

    def first(self, chunks: int | None) -> Self:
        """The same of the first chunks only."""
        tokens = self.tokens[:chunks]
        return replace(self, tokens=tokens, rows=self.rows[: len(tokens) * scored_tokens(self.context)])

    def log_probs(self, places: NDArray[np.integer] | slice) -> NDArray[np.float32]:
        """ln P of all tokens at these scored ones, (n, V)."""
        rows = self.rows[places]
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
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Writes the file for the text of token ids `ids`, whole or not at all; gives ln P of the scored tokens, (N,).

    It takes two bytes for each scored token and each token of the vocabulary. Raises InputError as `cut_windows` does.
    """
    path = Path(path)
    windows = cut_windows(ids, context, bos_of(model), name)[:chunks]
    tokens = np.array(ids[: windows.size], "<i4")
    scores = np.empty(len(windows) * scored_tokens(context))
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            file.write(MAGIC + np.array([context, model.config.vocab, len(windows)], "<i4").tobytes())
            file.write(tokens.tobytes())
            done = 0
            for step in step_windows([model], windows):
                assert step.places[0] == done  # steps come in the order of the text, or rows would be out of place
                done += len(step.places)
                for start, block, found in step.logits[0].scored_blocks(step.targets):
                    scores[step.places[start : start + len(block)]] = found
                    log_sums = block[np.arange(len(block)), step.targets[start : start + len(block)]] - found
                    file.write(_encode(block, log_sums).tobytes())
                if progress and step.ends:
                    progress(step.windows, len(windows))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return scores


def open_logits_file(path: str | Path) -> LogitsFile:
    """Maps a file. Raises InputError for one that is cut off or something else."""
    path = Path(path)
    try:
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if data[: len(MAGIC)].tobytes() != MAGIC or len(data) < _HEADER:
        raise InputError(f"{path}: not a file of llama-perplexity's logits; wanted one of --kl-divergence-base")
    context, vocabulary, chunks = data[len(MAGIC) : _HEADER].view("<i4").tolist()
    if context < 4 or vocabulary < 1 or chunks < 1:
        raise InputError(f"{path}: {chunks} chunks of {context} tokens of a vocabulary of {vocabulary}; damaged")
    width = 4 + 2 * ((vocabulary + 1) // 2)
    begin, records = _HEADER + 4 * chunks * context, chunks * scored_tokens(context)
    size = begin + 2 * width * records
    if len(data) != size:
        raise InputError(
            f"{path}: {len(data)} bytes, but {chunks} chunks of {context} tokens take {size}; cut off, write it again"
        )
    tokens = data[_HEADER:begin].view("<i4").reshape(chunks, context)
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise InputError(f"{path}: a token that the vocabulary of {vocabulary} does not have; damaged")
    return LogitsFile(path, vocabulary, tokens, data[begin:].view("<u2").reshape(records, width))


def compare_with_file(file: LogitsFile, model: Model, progress: Progress | None = None) -> DivergenceResult:
    """The divergence of `model` from the file's, as llama-perplexity --kl-divergence reckons it.

    Tokens with ln P of at most -16 are left out, so the sum is not over all of P: it can be a little below the
    divergence, even below 0. Raises InputError for a model of another vocabulary.
    """
    windows = windows_of(file, model)

    def compare_step(step: Step) -> NDArray[np.float64]:
        rows = step.logits[0].compare(_Stored(file, step.places), step.targets)
        # The rows' softmax is P over the sum of what was kept of it, which ln P of the best guess tells.
        kept = _log_prob_at(file, step.places, rows[:, Compared.BASE_TOP].astype(np.int64))
        log_mass = kept - rows[:, Compared.BASE_TOP_LOG_PROB]
        rows[:, Compared.DIVERGENCE] = np.exp(log_mass) * (rows[:, Compared.DIVERGENCE] + log_mass)
        rows[:, Compared.BASE_LOG_PROB] = _log_prob_at(file, step.places, step.targets)
        rows[:, Compared.BASE_TOP_LOG_PROB] = kept
        return rows

    return compare_windows([model], windows, compare_step, progress)


def windows_of(file: LogitsFile, model: Model) -> NDArray[np.int32]:
    """The file's chunks as the model reads them, each beginning with BOS where the vocabulary wants it.

    Raises InputError for a model with a vocabulary of another size; the file tells no more of it.
    """
    if file.vocabulary != model.config.vocab:
        raise InputError(
            f"{file.path}: of a vocabulary of {file.vocabulary} tokens, but {model.file.path} has {model.config.vocab}"
        )
    windows = file.tokens.astype(np.int32)
    if (bos := bos_of(model)) is not None:
        windows[:, 0] = bos
    return windows


@dataclass(frozen=True)
class _Stored:
    """Rows of a file as logits of a model."""

    file: LogitsFile
    places: NDArray[np.int64]
    head_rows: int = 1 << 30

    @property
    def rows(self) -> int:
        return len(self.places)

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        log_probs = self.file.log_probs(self.places[start:stop])
        log_probs[log_probs <= _LEAST] = _NOTHING
        return log_probs


def _log_prob_at(file: LogitsFile, places: NDArray[np.int64], tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    scale, lowest = np.ascontiguousarray(file.rows[places, :4]).view(np.float32).T
    return np.asarray(file.rows[places, 4 + tokens] * scale + lowest, np.float64)


def _encode(block: NDArray[np.float32], log_sums: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Records of logits (n, V) whose exponentials sum up to e^log_sums."""
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
