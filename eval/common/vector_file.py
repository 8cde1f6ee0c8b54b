"""Writes vectors of texts: as a numpy file, or as lines of JSON or CSV."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.whole_file import whole_file

FORMATS = ("jsonl", "csv")


def write_npy(path: Path, vectors: NDArray[np.float32]) -> None:
    """Writes an array (N, width), which numpy.load reads; the file appears whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, vectors)


def vector_lines(texts: Sequence[str], vectors: NDArray[np.float32], format: str) -> Iterator[str]:
    """A line for each text: its vector as numbers with commas, or an object with both.

    The shortest decimals are written that float32 reads back exactly.
    """
    for text, vector in zip(texts, vectors, strict=True):
        numbers = [str(number) for number in vector]
        if format == "csv":
            yield ",".join(numbers)
        else:
            yield f'{{"text": {json.dumps(text)}, "embedding": [{", ".join(numbers)}]}}'
