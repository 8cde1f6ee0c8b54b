"""Writes vectors of texts: as a numpy file, or as lines of JSON or CSV."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.whole_file import whole_file


def write_npy(path: Path, vectors: NDArray[np.float32]) -> None:
    """Writes an array (N, width), which numpy.load reads; the file appears whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, vectors)


def vector_lines(texts: Sequence[str], vectors: NDArray[np.float32], format: str) -> Iterator[str]:
    """A line for each text, its vector (csv) or an object with both (jsonl), or one object with all of them (json).

    The shortest decimals are written that float32 reads back exactly.
    """
    rows = [", ".join(map(str, vector)) for vector in vectors]
    if format == "json":
        yield f'{{"texts": {json.dumps(list(texts))}, "embeddings": [[{"], [".join(rows)}]]}}'
        return
    for text, row in zip(texts, rows, strict=True):
        yield row.replace(" ", "") if format == "csv" else f'{{"text": {json.dumps(text)}, "embedding": [{row}]}}'
