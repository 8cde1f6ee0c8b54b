"""Runs many texts through one model: which begin, what they share, and which of their tokens make the next batch.

A task is a text that may grow. It begins when the cache has room for all that it may come to hold, so that it can
finish; until then it waits, first come first served. It begins with a fork of the longest prefix that it has in common
with a running text or with one that was kept. Each batch has tokens of all running tasks: those that want few get them
all, and the others share the rest equally, so that a long prompt does not stall anybody. Who reads the logits decides
how a text goes on: engine/generate.py samples, lltool.eval.scoring.branches scores.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lltool.engine.adapters import scales_of
from lltool.engine.batch import PAGE
from lltool.engine.cache import Sequence
from lltool.engine.inputs import token_ids
from lltool.engine.logits import Logits
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from lltool.engine.model import Model

# A task waits until another has evaluated their common prefix if that saves it so many tokens: fewer cost less than
# being a batch later.
_WORTH_WAITING = 16
# Tokens of prompts in a batch in which other texts get their next token. Prompts are read as fast in batches of 64 as
# of 512 tokens, and these texts wait less for each token while a prompt of thousands is read.
_PROMPTS_BESIDE = 128
_LOOK_AHEAD = 256  # waiting tasks that may begin before one whose prefix is still to come


class Task:
    """A text to evaluate, `ids`. The scheduler gives it a sequence while it runs.

    Logits are wanted after each token from index `first` on. The text will have at most `limit` tokens; the cache keeps
    room for `reserved` of them (default: all) from the beginning on. `scales` are those of the model's adapters
    (default: each one's own); only texts with the same share a prefix. It is over when whoever reads its logits sets
    `is_over`; until then, a text whose tokens are all read must have got another one.
    """

    def __init__(
        self,
        ids: NDArray[np.int32] | List[int],
        *,
        first: int,
        limit: int,
        reserved: int | None = None,
        scales: List[float] | None = None,
    ) -> None:
        if not len(ids):
            raise InputError("an empty text: wanted at least one token")
        self._tokens = np.empty(max(limit, len(ids)), np.int32)
        self._tokens[: len(ids)] = ids
        self._count = len(ids)
        self.first, self.limit, self.reserved = first, limit, limit if reserved is None else reserved
        self.scales = scales
        self.sequence: Sequence | None = None
        self.shared = 0  # tokens that were in the cache when the task began
        self.common = 0  # tokens that a text in the cache began with too, even if their state was not at hand
        self.is_over = False

    @property
    def ids(self) -> NDArray[np.int32]:
        return self._tokens[: self._count]

    @property
    def evaluated(self) -> int:
        """The number of tokens that are in the cache."""
        return self.sequence.length if self.sequence else 0

    def append(self, id: int) -> None:
        self._tokens[self._count] = id
        self._count += 1

    def cut(self, start: int, stop: int) -> None:
        """Removes the tokens from index `start` to `stop`. Those after them move, and are evaluated anew."""
        tail = self._tokens[stop : self._count].copy()
        self._count -= stop - start
        self._tokens[start : self._count] = tail
        self.first = self._count - 1
        if self.sequence is not None:
            self.sequence.truncate(min(start, self.sequence.length))


@dataclass(frozen=True, eq=False)
class Taken:
    """A task of a batch with its number of tokens, and the indices in its text of those whose logits were computed."""

    task: Task
    rows: NDArray[np.intp]  # ascending
    count: int


# Reads the logits of a batch; their rows are those of the tasks, in order.
Reader = Callable[[Logits, List[Taken]], None]


@dataclass(frozen=True, eq=False)
class _Kept:
    """A text that is over, and stays in the cache as long as there is room."""

    ids: NDArray[np.int32]
    sequence: Sequence


class Scheduler:
    """Tasks on a model. It keeps the last `keep` texts that are over, so that others can begin with them.

    One thread at a time may use a scheduler. An exception in a step leaves every task as it was or a batch further, so
    that the next step can follow.
    """

    def __init__(self, model: "Model", *, keep: int = 16) -> None:
        self.model = model
        self.keep = keep
        self.waiting: deque[Task] = deque()
        self.running: list[Task] = []
        self._kept: list[_Kept] = []  # the one that was used last is the last
        self._is_full = False  # for the first of the waiting tasks, as long as no task ends or comes
        model.new_sequence()  # a closed model says so

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    @property
    def kept(self) -> list[NDArray[np.int32]]:
        """The texts that are over and still in the cache."""
        return [kept.ids for kept in self._kept]

    @property
    def has_room(self) -> bool:
        """Whether the next batch has room for tokens of a task that is not submitted yet. Raises what `step` raises."""
        with self.model.turn():
            self._admit()
        wanted = sum(len(task.ids) - task.evaluated for task in self.running)
        return not self._is_full and wanted < self.model.batch and len(self.waiting) < _LOOK_AHEAD

    def submit(self, task: Task) -> None:
        """Queues a task. Raises InputError if it does not fit the model's context, or has an unknown token id."""
        token_ids(task.ids, self.model.config.vocab)
        task.scales = scales_of(self.model.adapters, task.scales)
        if task.limit > self.model.context:
            raise InputError(
                f"{task.limit} tokens do not fit the context of {self.model.context}; "
                "load the model with a larger one or shorten the text"
            )
        self.waiting.append(task)
        self._is_full = False

    def cancel(self, task: Task) -> None:
        """Ends a task, whether it waits or runs; what it has evaluated is kept."""
        task.is_over = True
        if task in self.waiting:
            self.waiting.remove(task)
        self._retire()

    def kept_text(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], Sequence] | None:
        """The longest prefix of a text that a kept text consists of, with its state; None if there is none."""
        best = max(self._prefixes(ids), key=lambda kept: len(kept.ids), default=None)
        return None if best is None else (best.ids, best.sequence)

    def keep_text(
        self, ids: NDArray[np.int32], claim: Callable[[Sequence], None], fill: Callable[[Sequence], None]
    ) -> None:
        """Keeps a text whose state comes from elsewhere: `claim` takes room in an empty sequence, `fill` writes it.

        Kept texts go where room is wanted, the least recently used first. Raises InputError if that is not enough, and
        what `fill` raises.
        """
        sequence = self.model.new_sequence()
        pages = -(-len(ids) // PAGE)
        with self.model.turn():
            while True:
                promised = sum(task.sequence.pages_to_take(task.reserved) for task in self.running if task.sequence)
                try:
                    if pages > self.model.free_pages - promised:
                        raise InputError(f"the cache has no room for a text of {len(ids)} tokens")
                    claim(sequence)
                    break
                except InputError:
                    if not self._kept:
                        raise
                    self._drop(1)
            try:
                fill(sequence)
            except BaseException:
                sequence.free()
                raise
            self._kept.append(_Kept(ids, sequence))
            self._drop(len(self._kept) - self.keep)

    def forget_text(self, ids: NDArray[np.int32]) -> int:
        """Drops the kept texts that a text begins with; returns the number of tokens of the longest."""
        found = self._prefixes(ids)
        for kept in found:
            self._kept.remove(kept)
            kept.sequence.free()
        return max((len(kept.ids) for kept in found), default=0)

    def _prefixes(self, ids: NDArray[np.int32]) -> list[_Kept]:
        return [kept for kept in self._kept if _common_prefix(ids, kept.ids) == len(kept.ids)]

    def free(self) -> None:
        """Ends all tasks and returns everything to the cache."""
        self.waiting.clear()
        for task in self.running:
            task.is_over = True
        self._retire()
        self._drop(len(self._kept))

    def step(self, read: Reader) -> bool:
        """Runs one batch and has its logits read, in one turn of the model; returns whether there was anything to do.

        Raises InputError for a waiting task that nothing can make room for, and drops it; what `Model.forward` raises;
        and what `read` raises.
        """
        with self.model.turn():
            self._admit()
            taken = self._take()
            if not taken:
                return False
            pieces, rows = [], []
            for task, count in taken:
                assert task.sequence is not None
                start = task.sequence.length
                wanted = np.arange(max(task.first, start), max(task.first, start + count))
                pieces.append((task.sequence, task.ids[start : start + count], wanted - start))
                rows.append(Taken(task, wanted, count))
            logits = self.model.forward(pieces)
            try:
                read(logits, rows)
            finally:
                self._retire()
        return True

    def _take(self) -> list[tuple[Task, int]]:
        """The tasks of the next batch with their numbers of tokens; those that it has no room for come first later."""
        room = self.model.batch
        chosen, later = self.running[:room], self.running[room:]
        self.running = later + chosen
        for task in chosen:
            assert task.sequence is not None
            if task.sequence.length == len(task.ids):  # an interrupt came before its logits were read
                task.sequence.truncate(len(task.ids) - 1)
        left = {task: len(task.ids) - task.evaluated for task in chosen}
        if nexts := sum(count == 1 for count in left.values()):
            room = min(room, nexts + _PROMPTS_BESIDE)
        taken = []
        for number, task in enumerate(sorted(chosen, key=left.__getitem__)):
            taken.append((task, min(left[task], room // (len(chosen) - number))))
            room -= taken[-1][1]
        return taken

    def _admit(self) -> None:
        index = 0
        while (
            not self._is_full and index < min(len(self.waiting), _LOOK_AHEAD) and len(self.running) < self.model.batch
        ):
            task = self.waiting[index]
            source, shared, is_coming = self._find_prefix(task)
            if is_coming:
                index += 1
                continue
            sequence = self._make_room(task, source, shared)
            if sequence is None:
                self._is_full = bool(self.running)
                if not self.running:
                    del self.waiting[index]
                    self._refuse(task)
                return
            del self.waiting[index]
            task.sequence, task.shared, task.common = sequence, sequence.length, shared
            self.running.append(task)

    def _find_prefix(self, task: Task) -> tuple["Task | _Kept | None", int, bool]:
        """The text that has the longest prefix of the task's in the cache, its length, and whether to wait for more."""
        most = min(task.first, len(task.ids) - 1)  # what must be evaluated for its logits
        best: Task | _Kept | None = None
        ready = coming = 0
        sources: list[Task | _Kept] = [*self._kept, *self.running]
        for source in sources:
            assert source.sequence is not None
            if source.sequence.scales != task.scales:
                continue
            common = min(most, _common_prefix(task.ids, source.ids))
            coming = max(coming, common)
            if min(common, source.sequence.length) > ready:
                best, ready = source, min(common, source.sequence.length)
        return best, ready, coming - ready >= _WORTH_WAITING

    def _make_room(self, task: Task, source: "Task | _Kept | None", shared: int) -> Sequence | None:
        """A sequence with the first `shared` tokens of the task, for which the cache has room to its end; or None.

        Kept texts go, the least recently used first. A kept source is taken over if it has no more than what is shared,
        or if there is room for one text only.
        """
        if isinstance(source, _Kept):
            self._kept.remove(source)
            self._kept.append(source)
            if shared == source.sequence.length or self.keep == 1:
                return self._take_over(task, source, shared)
        if source is None:
            sequence = self.model.new_sequence(task.scales)
        else:
            assert source.sequence is not None
            sequence = source.sequence.fork()
            sequence.truncate(shared)
        while not self._has_room(task, sequence):
            if not self._kept:
                sequence.free()
                return None
            if self._kept[0] is source:
                sequence.free()
                return self._take_over(task, source, shared)
            self._drop(1)
        return sequence

    def _take_over(self, task: Task, source: _Kept, shared: int) -> Sequence | None:
        self._kept.remove(source)
        source.sequence.truncate(shared)
        while not self._has_room(task, source.sequence):
            if not self._kept:
                self._kept.append(_Kept(source.ids[: source.sequence.length], source.sequence))
                return None
            self._drop(1)
        return source.sequence

    def _has_room(self, task: Task, sequence: Sequence) -> bool:
        promised = sum(other.sequence.pages_to_take(other.reserved) for other in self.running if other.sequence)
        return sequence.pages_to_take(task.reserved) <= self.model.free_pages - promised

    def _refuse(self, task: Task) -> None:
        pages = -(-task.reserved // PAGE)
        raise InputError(
            f"{task.reserved} tokens take {pages} pages of the cache, but {self.model.free_pages} are free; "
            "load the model with more sequences"
        )

    def _retire(self) -> None:
        """Keeps the texts of the tasks that are over."""
        for task in [task for task in self.running if task.is_over]:
            self.running.remove(task)
            self._is_full = False
            sequence, task.sequence = task.sequence, None
            if sequence is not None and sequence.length:
                self._kept.append(_Kept(task.ids[: sequence.length].copy(), sequence))
                self._drop(len(self._kept) - self.keep)

    def _drop(self, count: int) -> None:
        """Frees the least recently used of the kept texts."""
        for _ in range(count):
            self._kept.pop(0).sequence.free()


def _common_prefix(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    length = min(len(first), len(second))
    if first[0] != second[0]:
        return 0
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if differing.size else length
