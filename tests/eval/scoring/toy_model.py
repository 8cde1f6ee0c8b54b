"""A model with logits that a test can compute by hand."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from lltool.engine.cache import Sequence, StatePool

VOCAB = 11


class ToyLogits:
    def __init__(self, rows: list[np.ndarray]) -> None:
        self.data = np.array(rows, dtype=np.float32).reshape(len(rows), VOCAB)
        self.rows = len(rows)

    def score(self, targets: np.ndarray) -> np.ndarray:
        assert len(targets) == len(self.data)
        chosen = self.data[np.arange(len(targets)), targets].astype(float)
        return np.asarray(chosen - np.log(np.exp(self.data.astype(float)).sum(axis=1)))


@dataclass
class ToyTokenizer:
    """Each token is a letter, except for token 0, which is a space, and BOS."""

    bos: int | None = None
    add_space_prefix: bool = False

    @property
    def add_bos(self) -> bool:
        return self.bos is not None

    def is_control(self, id: int) -> bool:
        return id == self.bos

    def piece(self, id: int) -> bytes:
        return b" abcdefghij"[id : id + 1]


class ToyModel:
    """The logits of a row depend on the token there and on how many tokens the sequence has seen."""

    context = 10**6

    def __init__(self, batch: int, bos: int | None = None, pages: int = 99) -> None:
        self.batch = batch
        self.setup = SimpleNamespace(pages=pages)
        self.file = SimpleNamespace(path="toy.gguf")
        self.tokenizer = ToyTokenizer(bos)
        self.pool = StatePool(pages, lambda source, target: None)
        self.largest = 0

    @property
    def free_pages(self) -> int:
        return len(self.pool.free)

    def new_sequence(self) -> Sequence:
        return Sequence(self.pool)

    def forward(self, pieces: list[tuple[Sequence, np.ndarray, np.ndarray]]) -> ToyLogits:
        self.largest = max(self.largest, sum(len(tokens) for _, tokens, _ in pieces))
        out = []
        for sequence, tokens, rows in pieces:
            sequence.reserve(len(tokens))
            out += [toy_logits(int(tokens[row]), sequence.length + row) for row in rows]
            sequence.length += len(tokens)
        return ToyLogits(out)


def toy_logits(token: int, position: int) -> np.ndarray:
    return np.sin(np.arange(VOCAB) * (token + 1) + position).astype(np.float32) * 3
