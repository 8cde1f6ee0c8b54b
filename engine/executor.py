"""What every executor promises."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import Batch


@dataclass(frozen=True)
class Observation:
    """The sums of the squares of each input column of a matrix, (experts, columns), and of how many rows, (experts,).

    A matrix without experts counts as one expert.
    """

    sums: NDArray[np.float64]
    rows: NDArray[np.int64]

    @classmethod
    def nothing(cls, experts: int, columns: int) -> "Observation":
        return cls(np.zeros((experts, columns)), np.zeros(experts, np.int64))


class Executor(Protocol):
    """Runs a Program over batches, and owns the memory of the cache.

    - It is created for one Program and allocates all memory then. A Program with an operation that it has no kernel
      for is an InputError that names the operation.
    - It computes each row of a batch from that row, and for attention from the cache; rows of one batch that belong
      to one sequence see each other through the cache. How a row is rounded may depend on the number of rows (the cpu
      executor has kernels of its own for few), never on their content, unless it was asked to be deterministic: then a
      row has the same bits in every batch.
    - The body runs over all tokens, once for a batch. The head (the operations on selected rows) runs over at most
      `head_rows` of `Batch.outputs` at once, when their logits are asked for; it may run again for the same rows.
    - There is one block of logits. The array that `logits` returns is a view of it, valid until the next call of
      `run`, `logits`, `score` or `compare`.
    - The cache belongs to the executor, and its pages to the sequences whose tables name them: a run writes the
      entries of the batch's own tokens, `copy_page` writes its target, and nothing else changes a page.
    - One thread calls it at a time.
    """

    head_rows: int

    def run(self, batch: Batch) -> None:
        """Runs the body of the program, which stores the batch's keys and values in the cache."""

    def logits(self, start: int, stop: int) -> NDArray[np.float32]:
        """Logits (stop - start, V) of the last batch's outputs [start, stop), at most `head_rows` of them."""

    def score(self, start: int, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """The natural logarithm of the probability that output row start + i gives to the token targets[i]."""

    def compare(self, start: int, base: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """Compares output rows [start, start + n), n <= head_rows, with logits (n, V) of `base`; see `compare_rows`."""

    def take_observations(self) -> dict[str, Observation]:
        """Returns the sums of the Program's observers by weight name, and resets them."""

    def copy_page(self, source: int, target: int) -> None:
        """Copies the entries of all layers from page `source` to page `target`."""


@runtime_checkable
class SlotExecutor(Executor, Protocol):
    """An executor that also holds states of fixed size (engine/state.py), as many as it was created with.

    A run writes the slots that its batch names, `copy_slot` writes its target, and nothing else changes a slot.
    """

    def copy_slot(self, source: int, target: int) -> None:
        """Copies the state in slot `source`, that of all layers, to slot `target`."""


@runtime_checkable
class SavingExecutor(SlotExecutor, Protocol):
    """An executor whose pages and slots can be read and written, each as bytes in a layout of its own.

    They mean the same to every executor of the same kind, program and settings. It may have no slots.
    """

    @property
    def page_bytes(self) -> int:
        """The size of a page."""

    @property
    def slot_bytes(self) -> int:
        """The size of a slot; 0 if the program's state has none."""

    def read_page(self, page: int) -> bytes:
        """The entries of all layers in a page."""

    def write_page(self, page: int, data: bytes) -> None:
        """Replaces the entries of all layers in a page."""

    def read_slot(self, slot: int) -> bytes:
        """The state in a slot, that of all layers."""

    def write_slot(self, slot: int, data: bytes) -> None:
        """Replaces the state in a slot."""
