"""The pieces of sequences that are computed together, as the batch that an executor takes."""

from collections.abc import Collection
from collections.abc import Sequence as List
from itertools import accumulate
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import Batch
from lltool.engine.cache import Sequence
from lltool.gguf.errors import InputError

Wanted = Literal["all", "last", "none"] | NDArray[np.integer]
Scalar = TypeVar("Scalar", bound=np.generic)


def make_batch(
    pieces: List[tuple[Sequence, NDArray[np.int32]]],
    rows: List[NDArray[np.integer]],
    types: NDArray[np.int32] | None = None,
) -> Batch:
    """Builds the batch that appends each piece's tokens to its sequence, whose pages are already reserved.

    `rows` are the tokens of each piece whose logits are computed. This runs for every generated token, so calls of
    numpy are kept few: one costs as much as the rest of its line.
    """
    counts = [len(ids) for _, ids in pieces]
    starts = [0, *accumulate(counts)]
    pasts = [sequence.length for sequence, _ in pieces]
    tables = [sequence.pages for sequence, _ in pieces]
    width = max(map(len, tables))
    scales = [sequence.scales for sequence, _ in pieces]
    return Batch(
        join([ids for _, ids in pieces]),
        positions=join([np.arange(past, past + n, dtype=np.int32) for past, n in zip(pasts, counts, strict=True)]),
        sequences=join([np.array([row], np.int32).repeat(n) for row, n in enumerate(counts)]),
        tables=np.array([pages + [0] * (width - len(pages)) for pages in tables], np.int32),
        outputs=join([start + wanted for start, wanted in zip(starts, rows, strict=False)]).astype(np.int32),
        slots=np.array([sequence.slot for sequence, _ in pieces if sequence.slot is not None], np.int32),
        types=types,
        scales=np.array(scales, np.float32) if scales[0] else None,
    )


def join(arrays: List[NDArray[Scalar]]) -> NDArray[Scalar]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def wanted_rows(wanted: Wanted, count: int) -> NDArray[np.integer]:
    """The rows of a piece of `count` tokens whose logits are computed."""
    if isinstance(wanted, np.ndarray):
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise TypeError(f"rows of type {wanted.dtype} and shape {wanted.shape}, wanted one row of whole numbers")
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < count):
            raise InputError(
                f"logits requested for rows {wanted.min()} to {wanted.max()}, but the piece has {count} tokens"
            )
        return wanted.astype(np.int64, copy=False)
    check_choice("wanted", wanted, ("all", "last", "none"))
    first = {"all": 0, "last": max(0, count - 1), "none": count}[wanted]
    return np.arange(first, count)


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} {value!r}, wanted one of {', '.join(known)}")
