"""The logits of one call of a model, computed block by block on request."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from lltool.engine.executor import Executor
from lltool.engine.inputs import token_ids, whole_number
from lltool.engine.reference.compare import Compared
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from lltool.engine.model import Model


class LogitRows(Protocol):
    """Logits, or logarithms of probabilities, that are read in blocks of at most `head_rows` rows."""

    @property
    def rows(self) -> int: ...
    @property
    def head_rows(self) -> int: ...
    def block(self, start: int, stop: int) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Logits:
    """The logits of one `Model.forward`, valid until the model's next call.

    If several threads use the model, hold `with model.turn():` from `forward` until the last block is read. Each method
    raises InputError if the model has run another call in between or is closed.
    """

    rows: int
    _model: "Model"
    _call: int

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields the blocks in order: the index of the first row, and a view (n, V) that the next block overwrites."""
        for start in range(0, self.rows, self.head_rows):
            yield start, self.block(start, min(self.rows, start + self.head_rows))

    def states(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields what `blocks` does, (n, width), of a model that was loaded for hidden states or pooled ones."""
        self._model.check_gives("hidden", "pooled")
        for start in range(0, self.rows, self.head_rows):
            yield start, self._read(start, min(self.rows, start + self.head_rows))

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop), at most `head_rows` of them, as a view that the next block overwrites."""
        self._model.check_gives("logits")
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> NDArray[np.float32]:
        with self._model.turn():
            executor = self._executor()
            start, stop = whole_number("start", start), whole_number("stop", stop)
            if not (0 <= start <= stop <= self.rows and stop - start <= executor.head_rows):
                raise InputError(f"rows {start} to {stop} of {self.rows}, wanted at most {executor.head_rows} of them")
            return executor.logits(start, stop)

    @property
    def head_rows(self) -> int:
        return self._model.executor.head_rows

    def score(self, targets: NDArray[np.integer]) -> NDArray[np.float64]:
        """The natural logarithm of the probability that row i gives to the token targets[i], (R,)."""
        with self._model.turn():
            return self._executor().score(0, self._targets(targets))

    def compare(self, base: LogitRows, targets: NDArray[np.integer]) -> NDArray[np.float64]:
        """Compares these rows with those of `base` as `compare_rows` does, (R, 7), keeping only one block at a time."""
        if base.rows != self.rows:
            raise InputError(f"{base.rows} rows of logits to compare with, wanted {self.rows}")
        chosen = self._targets(targets)
        out = np.empty((self.rows, len(Compared)))
        step = min(self.head_rows, base.head_rows)
        for start in range(0, self.rows, step):
            part = chosen[start : start + step]
            block = base.block(start, start + len(part))
            with self._model.turn():
                out[start : start + step] = self._executor().compare(start, block, part)
        return out

    def scored_blocks(
        self, targets: NDArray[np.integer]
    ) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float64]]]:
        """Yields what `blocks` does, each with the log-probabilities (n,) of the targets of its rows."""
        chosen = self._targets(targets)
        for start, block in self.blocks():
            with self._model.turn():
                scores = self._executor().score(start, chosen[start : start + len(block)])
            yield start, block, scores

    def all(self) -> NDArray[np.float32]:
        """A copy of all rows, (R, V)."""
        out = np.empty((self.rows, self._model.config.vocab), np.float32)
        with self._model.turn():
            for start, block in self.blocks():
                out[start : start + len(block)] = block
        return out

    def _executor(self) -> Executor:
        """The model's executor. Raises InputError if these logits are not those of its last call."""
        executor = self._model.executor
        if self._call != self._model.calls:
            raise InputError(
                "the model has computed something else since these logits were asked for; read them before its next "
                "call, or copy them with all() (with several threads, hold model.turn() until they are read)"
            )
        return executor

    def _targets(self, targets: NDArray[np.integer]) -> NDArray[np.int32]:
        self._model.check_gives("logits")
        chosen = token_ids(targets, self._model.config.vocab)
        if len(chosen) != self.rows:
            raise InputError(f"{len(chosen)} targets for {self.rows} rows of logits, wanted one per row")
        return np.ascontiguousarray(chosen)
