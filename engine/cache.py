"""The states of sequences: which pages and which slot of an executor's memory belong to which sequence.

A page holds the keys and values of PAGE tokens in all layers, a slot the state of fixed size after some number of
tokens in all layers. Sequences share pages and slots by reference count, and copy a shared one before they write into
it. So a fork copies nothing, and a checkpoint is one more reference to a slot. A sequence returns what it holds when it
is freed or garbage-collected. All changes happen within a turn (engine/turns.py), so that only one thread makes them at
a time.
"""

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as List
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NoReturn
from weakref import ref

from lltool.engine.batch import PAGE
from lltool.engine.inputs import whole_number
from lltool.engine.turns import Turns
from lltool.gguf.errors import InputError

MOST_CHECKPOINTS = 4  # of a sequence
CHECKPOINT_EVERY = 256  # tokens

Copy = Callable[[int, int], None]  # source, target


def _closed(source: int, target: int) -> None:
    raise InputError("the model of this sequence is closed; load it again")


@dataclass(eq=False)
class Blocks:
    """`size` pages or slots, numbered from 0; `references` counts the holders of each. `copy` is the executor's."""

    size: int
    copy: Copy
    references: list[int] = field(init=False)
    free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.recount(())

    def take(self, count: int) -> list[int]:
        """Takes `count` free blocks, of which there must be enough."""
        taken = [self.free.pop() for _ in range(count)]
        for block in taken:
            self.references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.references[block] -= 1
            if self.references[block] == 0:
                self.free.append(block)

    def recount(self, held: Iterable[int]) -> None:
        """Counts the holders anew; `held` has each block as often as it is held."""
        references = [0] * self.size
        for block in held:
            references[block] += 1
        self.references = references
        self.free = [block for block in range(self.size - 1, -1, -1) if not references[block]]


class StatePool:
    """The pages and slots of an executor.

    What living sequences hold is authoritative. The reference counts are derived from it, and recomputed after a
    sequence was garbage-collected, and when too few blocks seem free: an interrupt between two changes can only lose
    free blocks, because of the order in which the changes are made.

    A sequence makes a checkpoint whenever `checkpoint_every` tokens were appended since its last one (0: only when
    asked to), and keeps at most `most_checkpoints`.
    """

    def __init__(
        self,
        pages: int,
        copy_page: Copy,
        *,
        slots: int = 0,
        copy_slot: Copy = _closed,
        checkpoint_every: int = CHECKPOINT_EVERY,
        most_checkpoints: int = MOST_CHECKPOINTS,
    ) -> None:
        self.pages = Blocks(pages, copy_page)
        self.slots = Blocks(slots, copy_slot)
        self.checkpoint_every = checkpoint_every
        self.most_checkpoints = most_checkpoints
        self.turns = Turns()
        self._sequences: set[ref[Sequence]] = set()
        # The garbage collector calls this in any thread at any time, so that it may do no more than append.
        self._dropped: deque[ref[Sequence]] = deque()

    @property
    def free(self) -> list[int]:
        """The pages that no sequence holds."""
        return self._free_blocks(self.pages, 0)

    @property
    def free_slots(self) -> list[int]:
        """The slots that no sequence holds."""
        return self._free_blocks(self.slots, 0)

    def add(self, sequence: "Sequence") -> None:
        self._sequences.add(ref(sequence, self._dropped.append))

    def take_pages(self, count: int) -> list[int]:
        """Takes `count` free pages. Raises InputError, and takes none, if there are fewer."""
        free = len(self._free_blocks(self.pages, count))
        if count > free:
            raise InputError(
                f"the cache is full: {count} more pages of {PAGE} tokens wanted, {free} of {self.pages.size} "
                "free; load the model with a larger context or more sequences"
            )
        return self.pages.take(count)

    def take_slot(self) -> int:
        """Takes a free slot. Raises InputError if there is none."""
        if not self._free_blocks(self.slots, 1):
            raise InputError(
                f"the cache is full: all {self.slots.size} slots of its state are in use; "
                "load the model with more sequences"
            )
        return self.slots.take(1)[0]

    def close(self) -> None:
        """Drops the references to the executor."""
        self.pages.copy = self.slots.copy = _closed

    def _free_blocks(self, blocks: Blocks, wanted: int) -> list[int]:
        with self.turns.wait():
            if self._dropped or wanted > len(blocks.free):
                self._recount()
            return blocks.free

    def _recount(self) -> None:
        while self._dropped:
            self._sequences.discard(self._dropped.popleft())
        living = [sequence for known in self._sequences.copy() if (sequence := known()) is not None]
        self.pages.recount(page for sequence in living for page in sequence.pages)
        self.slots.recount(slot for sequence in living for slot in sequence.slots())


@dataclass(frozen=True)
class Checkpoint:
    """The slot that holds the state after `length` tokens; nothing writes into it any more."""

    length: int
    slot: int


@dataclass(eq=False)
class Sequence:
    """The state after the `length` tokens of one text: the pages of its tokens in order, and its slot.

    `scales` are those of the model's adapters, with which all of its tokens are computed.

    `slot` is None before the first token, and if the model's state has no slots. Pages and slots go back to the pool
    when the sequence is freed or garbage-collected.
    """

    pool: StatePool
    length: int = 0
    pages: list[int] = field(default_factory=list)
    slot: int | None = None
    checkpoints: list[Checkpoint] = field(default_factory=list)
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.pool.add(self)

    def slots(self) -> list[int]:
        """The slots that this sequence holds, each as often as it holds it."""
        return [*([] if self.slot is None else [self.slot]), *(kept.slot for kept in self.checkpoints)]

    def pages_to_take(self, length: int) -> int:
        """The pages that this sequence still has to take to hold `length` tokens, with the copy of a shared one."""
        return max(0, -(-length // PAGE) - len(self.pages)) + (self._shares_last_page() and length > self.length)

    def reserve(self, count: int) -> None:
        """Reserves pages for `count` more tokens, and a slot. Raises InputError, and changes nothing, if it is full."""
        with self._turn():
            wanted = self.pages_to_take(self.length + count)
            taken = self.pool.take_pages(wanted) if wanted else []
            try:
                self._own_slot()
            except InputError:
                self.pool.pages.release(taken)
                raise
            if wanted and self._shares_last_page():
                last = self.length // PAGE  # where the next token goes
                copy, old = taken.pop(), self.pages[last]
                self.pool.pages.copy(old, copy)
                self.pages[last] = copy
                self.pool.pages.release([old])
            self.pages += taken

    def advance(self, count: int) -> None:
        """Notes that the executor has appended `count` tokens, and makes a checkpoint if one is due."""
        with self._turn():
            self.length += count
            since = self.length - (self.checkpoints[-1].length if self.checkpoints else 0)
            if 0 < self.pool.checkpoint_every <= since:
                self.checkpoint()

    def checkpoint(self) -> None:
        """Keeps the slot as it is now, so that `truncate` can return to this length; pages need no checkpoint."""
        with self._turn():
            if self.slot is None or (self.checkpoints and self.checkpoints[-1].length == self.length):
                return
            self.pool.slots.share([self.slot])
            self.checkpoints.append(Checkpoint(self.length, self.slot))
            if len(self.checkpoints) > self.pool.most_checkpoints:
                self._drop_checkpoint()

    def fork(self) -> "Sequence":
        """A new sequence with the same tokens, which shares this one's pages, slot and checkpoints."""
        with self._turn():
            pages = self.pages[: -(-self.length // PAGE)]
            self.pool.pages.share(pages)
            self.pool.slots.share(self.slots())
            return Sequence(self.pool, self.length, pages, self.slot, list(self.checkpoints), self.scales)

    def truncate(self, length: int) -> int:
        """Removes all tokens from position `length` on, or more: returns how many must be evaluated again.

        With pages alone, that is none. A slot has no earlier state than its checkpoints: the sequence then ends at the
        last one at or before `length`, or is empty if there is none.
        """
        with self._turn():
            whole_number("length", length)
            if not 0 <= length <= self.length:
                raise InputError(f"a sequence of {self.length} tokens cannot be cut to {length}")
            found = length
            left: list[int] = []  # slots
            if self.slot is not None and length < self.length:
                found, left = self._restore(length)
            keep = -(-found // PAGE)
            pages = self.pages[keep:]
            self.length = found
            del self.pages[keep:]
            self.pool.pages.release(pages)
            self.pool.slots.release(left)
            return length - found

    def restore(self, length: int, checkpoints: List[int] | None) -> None:
        """Takes what a text of `length` tokens holds; whoever has the state of that text writes it there.

        `checkpoints` are the lengths at which it has one, ascending; None stands for a state without slots. Raises
        InputError, and takes nothing, if there is no room. The sequence must be empty.
        """
        with self._turn():
            assert not self.length, "only an empty sequence can be restored"
            try:
                self.pages = self.pool.take_pages(-(-length // PAGE))
                if checkpoints is not None:
                    self.slot = self.pool.take_slot()
                    for at in checkpoints:
                        self.checkpoints.append(Checkpoint(at, self.pool.take_slot()))
            except InputError:
                self.pool.pages.release(self.pages)
                self.pool.slots.release(self.slots())
                self.pages, self.slot, self.checkpoints = [], None, []
                raise
            self.length = length

    def spoil(self) -> None:
        """Returns to the last checkpoint: a run that failed may have written some of its results into the slot."""
        with self._turn():
            if self.slot is not None:
                length, left = self._restore(self.length)
                self.pool.slots.release(left)
                self.truncate(length)

    def free(self) -> None:
        """Returns all pages and slots to the pool; the sequence is then empty and can be used again."""
        self.truncate(0)

    def _restore(self, length: int) -> tuple[int, list[int]]:
        """Makes the last checkpoint at or before `length` the slot; returns its length, and the slots left behind."""
        before = self.slots()
        kept = [point for point in self.checkpoints if point.length <= length]
        found = kept[-1] if kept else None
        now = [*([found.slot] if found else []), *(point.slot for point in kept)]
        self.pool.slots.share(now)
        self.length = found.length if found else 0
        self.slot, self.checkpoints = found.slot if found else None, kept
        return self.length, before

    def _own_slot(self) -> None:
        """Makes the slot one that nobody else holds, if the model's state has slots.

        Where no slot is free, the sequence gives up checkpoints of its own.
        """
        slots = self.pool.slots
        if not slots.size:
            return
        while self._shares_slot() and self.checkpoints and not self.pool.free_slots:
            self._drop_checkpoint()
        if self.slot is not None and not self._shares_slot():
            return
        slot, old = self.pool.take_slot(), self.slot
        if old is not None:
            slots.copy(old, slot)
        self.slot = slot
        if old is not None:
            slots.release([old])

    def _drop_checkpoint(self) -> None:
        """Drops the one that is nearest to the one before it, so that those left are spread over the text."""
        lengths = [0, *(point.length for point in self.checkpoints)]
        gaps = [after - before for before, after in pairwise(lengths)]
        older = gaps[:-1] or gaps  # the newest stays if there is another
        dropped = self.checkpoints.pop(older.index(min(older)))
        self.pool.slots.release([dropped.slot])

    def _shares_slot(self) -> bool:
        return self.slot is not None and self.pool.slots.references[self.slot] > 1

    def _shares_last_page(self) -> bool:
        """Whether the page that the next token goes to already holds tokens and has other holders."""
        return self.length % PAGE > 0 and self.pool.pages.references[self.pages[self.length // PAGE]] > 1

    def _turn(self) -> AbstractContextManager[object]:
        return self.pool.turns.wait()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a sequence lives in its model's cache and cannot be copied or pickled; fork() makes another one"
        )
