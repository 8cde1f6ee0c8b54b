"""The change that completes a table with fewer rows than the vocabulary has tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lltool.gguf.source import Tensor
from lltool.quant.convert.families.changes import Change, Tensors, take_rows
from lltool.quant.convert.families.sizes import Sizes


@dataclass(frozen=True)
class PadRows(Change):
    """A matrix with fewer than `count` rows gets more of its first row, which the model reads for them."""

    count: str

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        rows = np.arange(sizes[self.count])
        return [t if t.shape[0] == len(rows) else take_rows(t, np.where(rows < t.shape[0], rows, 0)) for t in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return list(tensors)
