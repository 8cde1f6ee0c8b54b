"""A small file of a model's predictions for a text: the likely tokens at each scored position and the mass of the rest.

It stands in for the model when another model, or the same one at a later time, is compared with it. It is an npz
archive of

- `windows` int32 (windows, context): the tokens as the model read them, including BOS
- `ids` uint16 or uint32 (N, k): the k most likely tokens at each scored position, best first; the token that really
  comes next takes the last place if it is not among them
- `log_probs` float32 (N, k): the natural logarithms of their probabilities
- `tails` float32 (N,): the natural logarithm of the total probability of all other tokens
- `metadata`: a JSON object that records from what, by what and how the file was made
"""

import hashlib
import json
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lltool import __version__
from lltool.engine.model import Model
from lltool.engine.reference.compare import Compared
from lltool.eval.common.provenance import vocabulary_sha256
from lltool.eval.common.steps import CountProgress
from lltool.eval.divergence.divergence import DivergenceProgress, DivergenceResult, compare_windows
from lltool.eval.scoring.lockstep import WindowStep, score_second_halves, scored_tokens, step_windows
from lltool.eval.scoring.perplexity import Method
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.names import describe_os_error
from lltool.gguf.regular_file import open_regular
from lltool.gguf.whole_file import whole_file

FORMAT = "lltool reference"
VERSION = 1
TOP = 64  # the number of most likely tokens kept at a position

_SMALLEST_TAIL = 2.0**-24  # 1 minus the other probabilities is no more exact than this in float32
# What zipfile and numpy raise for bytes that were changed or cut off.
_DAMAGED = (
    ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, OverflowError, RuntimeError, SyntaxError,
    tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
_MAX_BYTES = 4 << 30  # the largest array to read, because a header can ask for any size


@dataclass(frozen=True)
class Reference:
    """A reference file's content, see the arrays above; `metadata` has `model_sha256`, `tokens_sha256` and so on."""

    path: Path
    metadata: Mapping[str, Any]
    windows: NDArray[np.int32]
    ids: NDArray[np.unsignedinteger]
    log_probs: NDArray[np.float32]
    tails: NDArray[np.float32]

    @property
    def context(self) -> int:
        return int(self.windows.shape[1])

    def first(self, chunks: int | None) -> Self:
        """The part of the reference with the first windows only (None: all)."""
        windows = self.windows[:chunks]
        rows = len(windows) * scored_tokens(self.context)
        return replace(
            self, windows=windows, ids=self.ids[:rows], log_probs=self.log_probs[:rows], tails=self.tails[:rows]
        )


def write_reference(
    path: str | Path,
    model: Model,
    windows: NDArray[np.int32],
    *,
    top: int = TOP,
    sources: Mapping[str, str] | None = None,
    progress: CountProgress | None = None,
) -> NDArray[np.float64]:
    """Runs `windows` (windows, context) through the model and writes its predictions to a file, whole or not at all.

    Returns ln P of the scored tokens, (N,). `sources` is added to the metadata, for example the text's name and hash.
    `progress` is called with the number of windows done and the total. Raises InputError for `top` below 2, and for a
    file that cannot be written.
    """
    vocabulary, (count, context) = model.config.vocab, windows.shape
    if top < 2:
        raise InputError(f"top {top}, wanted at least 2: the best guess and the token that really comes next")
    top = min(top, vocabulary)
    rows = count * scored_tokens(context)
    ids = np.empty((rows, top), np.uint16 if vocabulary <= 1 << 16 else np.uint32)
    log_probs, tails = np.empty((rows, top), np.float32), np.empty(rows, np.float32)
    scored = np.empty(rows)
    for step in step_windows([model], score_second_halves(windows)):
        for start, block, scores in step.logits[0].scored_blocks(step.targets):
            places, targets = step.places[start : start + len(block)], step.targets[start : start + len(block)]
            ids[places], log_probs[places], tails[places] = _summarize(block, targets, scores, top)
            scored[places] = scores
        if progress and step.ends:
            progress(step.windows, count)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "method": str(Method(context=context)),
        "tool": f"lltool {__version__}",
        "model": model.file.path.name,
        "model_sha256": sha256_of(model.file.paths),
        "precision": model.precision,
        "vocabulary": vocabulary,
        "vocabulary_sha256": vocabulary_sha256(model.tokenizer),
        "tokens_sha256": _digest(windows),
        **(sources or {}),
    }
    path = Path(path)
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:  # given a name, numpy would append .npz
            text = np.array(json.dumps(metadata))
            np.savez_compressed(file, metadata=text, windows=windows, ids=ids, log_probs=log_probs, tails=tails)
    except OSError as error:
        raise InputError(describe_os_error(error, path)) from None
    return scored


def open_reference(path: str | Path) -> Reference:
    """Reads a reference file. Raises InputError for a file that is truncated, damaged or of another format."""
    path = Path(path)
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            if max(info.file_size for info in archive.zip.infolist()) > _MAX_BYTES:
                raise InputError(f"{path}: arrays of more than {_MAX_BYTES} bytes; not a reference file")
            metadata = json.loads(str(archive["metadata"]))
            arrays = [archive[name] for name in ("windows", "ids", "log_probs", "tails")]
            if not all(isinstance(array, np.ndarray) for array in arrays):
                raise ValueError("an entry is not an array")  # numpy gives what it does not know as bytes
    except OSError as error:
        raise InputError(describe_os_error(error, path)) from None
    except _DAMAGED:
        raise InputError(
            f"{path}: not a reference file, or a truncated one; make one with lltool perplexity --write-reference"
        ) from None
    if not (isinstance(metadata, dict) and metadata.get("format") == FORMAT and metadata.get("version") == VERSION):
        raise InputError(f"{path}: not a reference file of version {VERSION}; make the reference again")
    _check_arrays(path, metadata, *arrays)
    return Reference(path, metadata, *arrays)


def compare_with_reference(
    reference: Reference, model: Model, progress: DivergenceProgress | None = None
) -> DivergenceResult:
    """The divergence of `model` from the reference's predictions, on the reference's windows.

    The tokens that the reference does not list are merged into one outcome, which compares P's tail with Q's. Merging
    outcomes never increases a divergence, so the result is an exact lower bound of the full divergence, and equals it
    where Q distributes its tail like P. Everything else (probabilities of the tokens that really come next, best
    guesses) is exact. Raises InputError for a model with another vocabulary or too short a context.
    """
    check_reference(reference, model)

    def compare_step(step: WindowStep) -> NDArray[np.float64]:
        parts = []
        for start, block, scores in step.logits[0].scored_blocks(step.targets):
            places, targets = step.places[start : start + len(block)], step.targets[start : start + len(block)]
            parts.append(_compare_block(reference, places, block, targets, scores))
        return np.concatenate(parts)

    return compare_windows([model], reference.windows, compare_step, progress)


def check_reference(reference: Reference, model: Model) -> None:
    """Raises InputError unless every token id stands for the same token in the model and in the reference."""
    recorded, found = reference.metadata["vocabulary"], model.config.vocab
    if recorded != found:
        raise InputError(f"{reference.path}: has a vocabulary of {recorded} tokens, but {model.file.path} has {found}")
    if reference.metadata.get("vocabulary_sha256") != vocabulary_sha256(model.tokenizer):
        raise InputError(
            f"{reference.path}: has {found} tokens that are not those of {model.file.path}; "
            "a reference can only be compared with models of its own vocabulary"
        )


def _summarize(
    block: NDArray[np.float32], targets: NDArray[np.int32], scores: NDArray[np.float64], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Ids, log-probabilities and tails for rows of logits (n, V) whose targets have the log-probabilities `scores`."""
    rows = np.arange(len(block))
    best = np.sort(np.argpartition(block, -top, axis=1)[:, -top:], axis=1)
    order = np.argsort(-np.take_along_axis(block, best, axis=1), axis=1, kind="stable")  # ties: the lowest id first
    ids = np.take_along_axis(best, order, axis=1)
    missing = (ids != targets[:, None]).all(axis=1)
    ids[missing, -1] = targets[missing]
    log_sums = block[rows, targets] - scores
    log_probs = np.take_along_axis(block, ids, axis=1) - log_sums[:, None]
    rest = np.exp(block - block.max(axis=1, keepdims=True))
    np.put_along_axis(rest, ids, 0, axis=1)
    with np.errstate(divide="ignore"):  # an empty tail has a probability of 0
        tails = np.log(rest.sum(axis=1, dtype=np.float64)) + block.max(axis=1) - log_sums
    return ids, log_probs, tails


def _compare_block(
    reference: Reference,
    places: NDArray[np.int64],
    block: NDArray[np.float32],
    targets: NDArray[np.int32],
    scores: NDArray[np.float64],
) -> NDArray[np.float64]:
    rows = np.arange(len(block))
    ids = reference.ids[places].astype(np.int64)
    base = reference.log_probs[places].astype(np.float64)
    tails = reference.tails[places].astype(np.float64)
    log_sums = block[rows, targets] - scores
    found = np.take_along_axis(block, ids, axis=1) - log_sums[:, None]
    found_tails = np.log(np.maximum(1 - np.exp(found).sum(axis=1), _SMALLEST_TAIL))
    best = block.argmax(axis=1)
    out = np.empty((len(block), len(Compared)))
    in_tail = np.where(np.isfinite(tails), np.exp(tails) * (np.maximum(tails, -999) - found_tails), 0)
    out[:, Compared.DIVERGENCE] = np.maximum((np.exp(base) * (base - found)).sum(axis=1) + in_tail, 0)
    out[:, Compared.BASE_LOG_PROB] = base[rows, (ids == targets[:, None]).argmax(axis=1)]
    out[:, Compared.LOG_PROB] = scores
    out[:, Compared.BASE_TOP], out[:, Compared.TOP] = ids[:, 0], best
    out[:, Compared.BASE_TOP_LOG_PROB] = base[:, 0]
    out[:, Compared.TOP_LOG_PROB] = block[rows, best] - log_sums
    return out


def _check_arrays(
    path: Path, metadata: Mapping[str, Any], windows: NDArray[Any], ids: NDArray[Any], *others: NDArray[Any]
) -> None:
    log_probs, tails = others
    rows = len(windows) * scored_tokens(windows.shape[1]) if windows.ndim == 2 else -1
    vocabulary = metadata.get("vocabulary")
    fine = (
        isinstance(vocabulary, int)
        and windows.dtype == np.int32
        and ids.dtype in (np.uint16, np.uint32)
        and log_probs.dtype == tails.dtype == np.float32
        and ids.ndim == 2
        and ids.shape == log_probs.shape
        and len(ids) == len(tails) == rows > 0
        and 0 < ids.shape[1] <= vocabulary
        and ids.max() < vocabulary
        and 0 <= windows.min() <= windows.max() < vocabulary
    )
    if not fine:
        raise InputError(f"{path}: its arrays do not fit together; make the reference again")
    if metadata.get("tokens_sha256") != _digest(windows):
        raise InputError(f"{path}: its tokens do not match their recorded digest; make the reference again")


def _digest(windows: NDArray[np.int32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(windows, "<i4").tobytes()).hexdigest()
