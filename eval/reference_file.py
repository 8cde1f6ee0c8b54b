"""A small file of what a model says of a text: the likely tokens at each scored position, and the mass of the rest.

It stands in for the model where another one, or the same one later, is held against it. The file is an npz archive of

- `windows` int32 (windows, context): the tokens as the model read them, BOS and all
- `ids` uint16 or uint32 (N, k): at each scored position the k most likely tokens, best first; the token that really
  comes takes the last place where it is none of them
- `log_probs` float32 (N, k): natural logarithms of their probabilities
- `tails` float32 (N,): that of the probability of all other tokens together
- `metadata`: a JSON object; its values say what the file was made of, by what and how
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lltool import __version__
from lltool.engine.compare import Compared
from lltool.engine.model import Model
from lltool.eval.divergence import DivergenceResult, Progress, compare_windows
from lltool.eval.lockstep import Step, scored_tokens, step_windows
from lltool.eval.perplexity import Method
from lltool.eval.provenance import vocabulary_sha256
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.whole_file import whole_file

FORMAT = "lltool reference"
VERSION = 1
TOP = 64  # most likely tokens that are kept at a position

_SMALLEST_TAIL = 2.0**-24  # what is left of 1 is no more exact than this in float32
_MAX_BYTES = 4 << 30  # of an array: a header can ask for any


@dataclass(frozen=True)
class Reference:
    """A reference file's content; see the arrays above. `metadata` has `model_sha256`, `tokens_sha256` and so on."""

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
        """The same of the first windows only."""
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
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Runs `windows` (windows, context) through the model and writes what it says of them; whole, or not at all.

    Gives ln P of the scored tokens, (N,). `sources` goes into the metadata: the text's name and hash, for one.
    `progress` is told windows done and in all.
    """
    vocabulary, (count, context) = model.config.vocab, windows.shape
    if top < 2:
        raise InputError(f"top {top}, wanted at least 2: the best guess, and the token that comes")
    top = min(top, vocabulary)
    rows = count * scored_tokens(context)
    ids = np.empty((rows, top), np.uint16 if vocabulary <= 1 << 16 else np.uint32)
    log_probs, tails = np.empty((rows, top), np.float32), np.empty(rows, np.float32)
    scored = np.empty(rows)
    for step in step_windows([model], windows):
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
        with whole_file(path) as temporary, temporary.open("wb") as file:  # a name would get the ending .npz
            text = np.array(json.dumps(metadata))
            np.savez_compressed(file, metadata=text, windows=windows, ids=ids, log_probs=log_probs, tails=tails)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return scored


def open_reference(path: str | Path) -> Reference:
    """Raises InputError for a file that is cut off, damaged, or something else."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if max(info.file_size for info in archive.zip.infolist()) > _MAX_BYTES:
                raise InputError(f"{path}: arrays of more than {_MAX_BYTES} bytes; not a reference file")
            metadata = json.loads(str(archive["metadata"]))
            arrays = [archive[name] for name in ("windows", "ids", "log_probs", "tails")]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error):
        raise InputError(
            f"{path}: not a reference file, or cut off; make one with lltool perplexity --write-reference"
        ) from None
    if not (isinstance(metadata, dict) and metadata.get("format") == FORMAT and metadata.get("version") == VERSION):
        raise InputError(f"{path}: not a reference file of version {VERSION}; make it anew")
    _check_arrays(path, metadata, *arrays)
    return Reference(path, metadata, *arrays)


def compare(reference: Reference, model: Model, progress: Progress | None = None) -> DivergenceResult:
    """The divergence of `model` from what the reference says, on the reference's windows.

    The tokens that the reference does not name are one outcome, of P's tail against Q's. Merging outcomes never makes a
    divergence larger: this is an exact lower bound of the full one, and equal to it where Q spreads its tail like P.
    All else (probabilities of the tokens that come, best guesses) is exact. Raises InputError for a model with another
    vocabulary or too short a context.
    """
    check_reference(reference, model)

    def compare_step(step: Step) -> NDArray[np.float64]:
        parts = []
        for start, block, scores in step.logits[0].scored_blocks(step.targets):
            places, targets = step.places[start : start + len(block)], step.targets[start : start + len(block)]
            parts.append(_compare_block(reference, places, block, targets, scores))
        return np.concatenate(parts)

    return compare_windows([model], reference.windows, compare_step, progress)


def check_reference(reference: Reference, model: Model) -> None:
    """Raises InputError unless token ids mean to the model what they mean in the reference."""
    recorded, found = reference.metadata["vocabulary"], model.config.vocab
    if recorded != found:
        raise InputError(f"{reference.path}: of a vocabulary of {recorded} tokens, but {model.file.path} has {found}")
    if reference.metadata.get("vocabulary_sha256") != vocabulary_sha256(model.tokenizer):
        raise InputError(
            f"{reference.path}: of {found} tokens that are not those of {model.file.path}; "
            "a reference is good for models of one vocabulary"
        )


def _summarize(
    block: NDArray[np.float32], targets: NDArray[np.int32], scores: NDArray[np.float64], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Ids, log-probabilities and tails for rows of logits whose targets have the log-probabilities `scores`."""
    rows = np.arange(len(block))
    best = np.sort(np.argpartition(block, -top, axis=1)[:, -top:], axis=1)
    order = np.argsort(-np.take_along_axis(block, best, axis=1), axis=1, kind="stable")  # of equals the first
    ids = np.take_along_axis(best, order, axis=1)
    missing = (ids != targets[:, None]).all(axis=1)
    ids[missing, -1] = targets[missing]
    log_sums = block[rows, targets] - scores
    log_probs = np.take_along_axis(block, ids, axis=1) - log_sums[:, None]
    rest = np.exp(block - block.max(axis=1, keepdims=True))
    np.put_along_axis(rest, ids, 0, axis=1)
    with np.errstate(divide="ignore"):  # no tail at all is a probability of 0
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
        raise InputError(f"{path}: its arrays do not belong together; make the reference anew")
    if metadata.get("tokens_sha256") != _digest(windows):
        raise InputError(f"{path}: its tokens are not those it was made of; make the reference anew")


def _digest(windows: NDArray[np.int32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(windows, "<i4").tobytes()).hexdigest()
