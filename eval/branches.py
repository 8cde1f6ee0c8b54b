"""Log-likelihoods of several endings of one beginning; what beginnings share is computed once.

Work is a queue of sequences to compute: contexts, of which the endings are forks, and endings. Batches are filled from
its front, and new groups come in as batch and cache have room.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE
from lltool.engine.cache import Sequence
from lltool.engine.model import Model, Tokens
from lltool.gguf.errors import InputError

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Branches:
    """A context of one token or more and what may follow it."""

    context: Tokens
    endings: List[Tokens]


@dataclass(frozen=True)
class EndingScores:
    """For each token of an ending: the logarithm of its probability, and whether it is the most probable one.

    `is_best` is empty where it was not asked for.
    """

    logprobs: NDArray[np.float64]
    is_best: NDArray[np.bool_]


def score_branches(
    model: Model, groups: Iterable[Branches], *, find_best: bool = False
) -> Iterator[list[EndingScores]]:
    """Scores each group's endings, group by group in order.

    Endings share the pages of their context, and a context those of the one before it as far as they agree: order
    groups so that alike ones are neighbours. Logits live for a block of rows only. Raises InputError for an empty
    context and for a group that the model's context or cache has no room for.
    """
    scorer = _Scorer(model, iter(groups), find_best)
    try:
        yield from scorer.run()
    finally:
        scorer.release()


@dataclass(eq=False)
class _Group:
    context: Ids
    endings: list[Ids]
    parts: list[list[EndingScores]]
    waiting: list[int]  # numbers of endings that are not begun
    unfinished: int

    @staticmethod
    def of(branches: Branches) -> "_Group":
        if not len(branches.context):
            raise InputError("an empty context: wanted at least one token, such as BOS, to predict from")
        endings = [np.asarray(ending, np.int32) for ending in branches.endings]
        waiting = [number for number, ending in enumerate(endings) if ending.size]
        return _Group(np.asarray(branches.context, np.int32), endings, [[] for _ in endings], waiting, len(waiting))

    @property
    def scores(self) -> list[EndingScores]:
        return [
            EndingScores(
                np.concatenate([np.empty(0), *(part.logprobs for part in parts)]),
                np.concatenate([np.empty(0, np.bool_), *(part.is_best for part in parts)]),
            )
            for parts in self.parts
        ]

    def pages(self, numbers: List[int]) -> int:
        """Of the cache, that these endings take when nothing is there. The last one goes on in its context's pages."""
        stem = len(self.context) - 1
        totals = [_pages(stem + self.endings[number].size) for number in numbers]
        return sum(total - stem // PAGE for total in totals[:-1]) + (totals[-1] if totals else 0)


@dataclass(eq=False)
class _Job:
    """Tokens of a sequence to compute: an ending's, or all but the last one of a context, of which endings will fork.

    Row i of `inputs` predicts targets[i]; rows from `first` on are wanted, of a context none.
    """

    group: _Group
    numbers: list[int]  # of endings
    inputs: Ids
    targets: Ids
    first: int
    sequence: Sequence

    @property
    def left(self) -> int:
        return len(self.inputs) - self.sequence.length

    @property
    def is_context(self) -> bool:
        return self.first == len(self.inputs)

    def pages_to_take(self) -> int:
        """At most, until the group is done with this sequence and those that fork from it."""
        held = self.sequence
        if self.is_context:
            return self.group.pages(self.numbers) - held.length // PAGE
        last = held.length // PAGE
        is_shared = held.length % PAGE > 0 and held.pool.references[held.pages[last]] > 1
        return _pages(len(self.inputs)) - len(held.pages) + is_shared


@dataclass
class _Scorer:
    model: Model
    source: Iterator[Branches]
    find_best: bool
    jobs: list[_Job] = field(default_factory=list)
    groups: deque[_Group] = field(default_factory=deque)
    upcoming: _Group | None = None
    newest: _Group | None = None  # the last one that came in
    kept: tuple[Ids, Sequence] | None = None  # a context already computed, in whole pages

    def run(self) -> Iterator[list[EndingScores]]:
        while True:
            taken = self._take()
            if taken:
                self._compute(taken)
            elif not self.groups:
                return
            while self.groups and not self.groups[0].unfinished:
                yield self.groups.popleft().scores

    def release(self) -> None:
        for job in self.jobs:
            job.sequence.free()
        self._forget()

    def _take(self) -> list[tuple[_Job, int]]:
        """Jobs of one batch and how many tokens of each: from the front what fits whole, or a part of the first."""
        taken: list[tuple[_Job, int]] = []
        room, index = self.model.batch, 0
        while room and (index < len(self.jobs) or self._admit()):
            if index == len(self.jobs):
                continue  # a group with nothing to compute
            job = self.jobs[index]
            if taken and job.left > room:
                break
            taken.append((job, min(job.left, room)))
            room -= taken[-1][1]
            index += 1
        return taken

    def _admit(self) -> bool:
        """Takes the next group in, unless the cache has no room for it or what it shares is not computed yet."""
        if self.upcoming is None:
            branches = next(self.source, None)
            if branches is None:
                return False
            self.upcoming = _Group.of(branches)
        group = self.upcoming
        shared = _shared_pages(group.context, self.kept[0]) if self.kept else 0
        if self._is_computing(self.newest) and _shared_pages(group.context, self.newest.context) > shared:
            return False
        if not shared:
            self._forget()
        free = self._free_pages() - sum(job.pages_to_take() for job in self.jobs)
        numbers = group.waiting
        if group.pages(numbers) - shared > free:
            if self.jobs:
                return False
            shared = 0
            self._forget()
            while len(numbers) > 1 and group.pages(numbers) > self._free_pages():
                numbers = numbers[:-1]  # the others come in when these are done
        self._check(group, numbers, group.pages(numbers) - shared)
        sequence = self.model.new_sequence()
        if self.kept and shared:
            sequence = self.kept[1].fork()
            sequence.truncate(shared * PAGE)
        if group is not self.newest:
            self.groups.append(group)
        self.newest = group
        group.waiting = group.waiting[len(numbers) :]
        if not group.waiting:
            self.upcoming = None
        self.jobs += self._begin(group, numbers, sequence)
        return True

    def _is_computing(self, group: _Group | None) -> TypeGuard[_Group]:
        """Whether its context is on the way to being kept."""
        if group is None or (self.kept and self.kept[0] is group.context):
            return False
        return any(job.group is group for job in self.jobs)

    def _begin(self, group: _Group, numbers: list[int], sequence: Sequence) -> list[_Job]:
        """The jobs that endings start with: their context, or the ending itself where it is just one."""
        if not numbers:
            sequence.free()
            return []
        if len(numbers) == 1:
            return [_ending(group, numbers[0], sequence)]
        context = group.context[:-1]
        job = _Job(group, numbers, context, context, len(context), sequence)
        return [job] if job.left else self._fork(job)

    def _fork(self, job: _Job) -> list[_Job]:
        """The endings of a context; the last one goes on in the context's own pages."""
        forks = [_ending(job.group, number, job.sequence.fork()) for number in job.numbers[:-1]]
        return [*forks, _ending(job.group, job.numbers[-1], job.sequence)]

    def _compute(self, taken: list[tuple[_Job, int]]) -> None:
        pieces, targets, sizes = [], [], []
        for job, count in taken:
            start = job.sequence.length
            rows = np.arange(max(job.first, start), max(job.first, start + count))
            pieces.append((job.sequence, job.inputs[start : start + count], rows - start))
            targets.append(job.targets[rows])
            sizes.append(len(rows))
        logits, wanted = self.model.forward(pieces), np.concatenate(targets)
        is_best = np.empty(0, np.bool_)
        if self.find_best:
            best = [block.argmax(axis=1) for _, block in logits.blocks()]
            is_best = np.concatenate([np.empty(0, np.intp), *best]) == wanted
        scores = logits.score(wanted) if logits.rows else np.empty(0)
        ends = np.cumsum(sizes)
        for (job, _), start, stop in zip(taken, ends - sizes, ends, strict=True):
            if not job.is_context:
                job.group.parts[job.numbers[0]].append(EndingScores(scores[start:stop], is_best[start:stop]))
        self.jobs = [following for job in self.jobs for following in ([job] if job.left else self._finish(job))]

    def _finish(self, job: _Job) -> list[_Job]:
        """What comes after a job."""
        context = job.group.context
        if job.group is self.newest and (self.kept is None or self.kept[0] is not context):
            self._forget()
            sequence = job.sequence.fork()
            sequence.truncate((len(context) - 1) // PAGE * PAGE)  # whole pages: keeping them copies none
            self.kept = context, sequence
        if job.is_context:
            return self._fork(job)
        job.sequence.free()
        job.group.unfinished -= 1
        return []

    def _forget(self) -> None:
        if self.kept:
            self.kept[1].free()
        self.kept = None

    def _free_pages(self) -> int:
        return len(self.model.new_sequence().pool.free)

    def _check(self, group: _Group, numbers: list[int], pages: int) -> None:
        tokens = len(group.context) - 1 + max((group.endings[number].size for number in numbers), default=0)
        if tokens > self.model.context:
            raise InputError(
                f"{tokens} tokens do not fit the context of {self.model.context}; "
                "load the model with a larger one or shorten the text"
            )
        if pages > self._free_pages():
            raise InputError(
                f"{tokens} tokens take {pages} pages of the cache, {self._free_pages()} are free; "
                "load the model with more sequences"
            )


def _ending(group: _Group, number: int, sequence: Sequence) -> _Job:
    ids = np.concatenate([group.context, group.endings[number]])
    return _Job(group, [number], ids[:-1], ids[1:], len(group.context) - 1, sequence)


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)


def _shared_pages(first: Ids, second: Ids) -> int:
    """Whole pages that two contexts have in common at the beginning, their last tokens apart."""
    length = min(len(first), len(second)) - 1
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0] if differing.size else length) // PAGE
