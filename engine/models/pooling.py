"""How the states of a text's tokens become one vector, as a model's metadata says."""

from dataclasses import dataclass
from typing import Literal

from lltool.gguf.architecture_keys import ArchitectureKeys

Pooling = Literal["mean", "cls", "last"]
"""The mean of all tokens' states, or the state of the first token or of the last."""

_KINDS: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last"}
_NONE, _RANK = 0, 4


@dataclass(frozen=True)
class PoolingSettings:
    """With `ranks`, the vector goes through a classifier, whose outputs are scores. `is_stated`: the file names it."""

    kind: Pooling = "mean"
    ranks: bool = False
    is_stated: bool = False


def read_pooling(keys: ArchitectureKeys, of_rankers: Pooling, *, has_classifier: bool) -> PoolingSettings:
    """The file's pooling, or its architecture's: `of_rankers`, else the mean.

    A file with a classifier ranks, unless it states another pooling.
    """
    stated = keys.integer("pooling_type", _RANK if has_classifier else _NONE, minimum=0)
    keys.expect("pooling_type", stated in (_NONE, _RANK, *_KINDS), "0 to 4")
    if stated != _RANK:
        return PoolingSettings(_KINDS.get(stated, "mean"), is_stated=stated != _NONE)
    before = keys.integer("classifier.pooling_type", _NONE, minimum=0)
    keys.expect("classifier.pooling_type", before in (_NONE, *_KINDS), "1, 2 or 3")
    return PoolingSettings(_KINDS.get(before, of_rankers), ranks=True)
