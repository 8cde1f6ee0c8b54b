"""Log-likelihoods of several endings of one context; common prefixes are computed once.

Each ending is a task of the scheduler (engine/scheduler.py): its text is the context and the ending, and its logits are
wanted from the context's last token on.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as List
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lltool.engine.inputs import token_ids
from lltool.engine.logits import Logits
from lltool.engine.model import Model, Tokens
from lltool.engine.scheduler import Scheduler, Taken, Task
from lltool.gguf.errors import InputError


@dataclass(frozen=True)
class Branches:
    """A context of one token or more and the endings that may follow it."""

    context: Tokens
    endings: List[Tokens]


@dataclass(frozen=True)
class EndingScores:
    """For each token of an ending: its natural log-probability, and whether it is the most probable one.

    `is_best` is empty unless it was requested.
    """

    logprobs: NDArray[np.float64]
    is_best: NDArray[np.bool_]


def score_branches(
    model: Model, groups: Iterable[Branches], *, find_best: bool = False
) -> Iterator[list[EndingScores]]:
    """Yields the scores of each group's endings, in the order of the groups.

    Endings share the cache pages of their context, and of the longest prefix of other texts of about the same time, so
    similar groups should be neighbours. Logits are held for one block of rows at a time. Raises InputError for an empty
    context and for an ending that does not fit the model's context or cache.
    """
    scheduler, begun, source = Scheduler(model), deque[_Group](), iter(groups)
    try:
        while True:
            while scheduler.has_room:
                if (branches := next(source, None)) is None:
                    break
                begun.append(_Group.of(branches, model.config.vocab))
                for task in begun[-1].tasks:
                    scheduler.submit(task)
            if not scheduler.step(lambda logits, taken: _read(logits, taken, find_best)) and not begun:
                return
            while begun and all(task.is_over for task in begun[0].tasks):
                yield begun.popleft().scores
    finally:
        scheduler.free()


class _Ending(Task):
    """The text of a context and an ending, without the last token, which predicts nothing."""

    def __init__(self, context: NDArray[np.int32], ending: NDArray[np.int32]) -> None:
        text = np.concatenate([context, ending])
        super().__init__(text[:-1], first=len(context) - 1, limit=len(text) - 1)
        self.text = text
        self.parts: list[EndingScores] = []

    def take(self, rows: NDArray[np.intp], scores: EndingScores) -> None:
        self.parts.append(scores)
        self.is_over = bool(rows.size) and int(rows[-1]) == len(self.ids) - 1


@dataclass(frozen=True)
class _Group:
    endings: list[_Ending | None]  # None: an ending without tokens
    tasks: list[_Ending] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", [task for task in self.endings if task])

    @staticmethod
    def of(branches: Branches, vocab: int) -> "_Group":
        context = token_ids(branches.context, vocab)
        if not len(context):
            raise InputError("an empty context: wanted at least one token, such as BOS, to predict from")
        endings = [token_ids(ending, vocab) for ending in branches.endings]
        return _Group([_Ending(context, ending) if ending.size else None for ending in endings])

    @property
    def scores(self) -> list[EndingScores]:
        return [
            EndingScores(
                np.concatenate([np.empty(0), *(part.logprobs for part in parts)]),
                np.concatenate([np.empty(0, np.bool_), *(part.is_best for part in parts)]),
            )
            for parts in (ending.parts if ending else [] for ending in self.endings)
        ]


def _read(logits: Logits, taken: List[Taken], find_best: bool) -> None:
    if not logits.rows:
        return
    wanted = np.concatenate([each.task.text[each.rows + 1] for each in taken if isinstance(each.task, _Ending)])
    is_best = np.empty(0, np.bool_)
    if find_best:
        is_best = np.concatenate([block.argmax(axis=1) for _, block in logits.blocks()]) == wanted
    scores = logits.score(wanted)
    stop = 0
    for task, rows in ((each.task, each.rows) for each in taken):
        assert isinstance(task, _Ending)
        start, stop = stop, stop + len(rows)
        task.take(rows, EndingScores(scores[start:stop], is_best[start:stop]))
