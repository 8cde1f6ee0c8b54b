"""The bookkeeping of states: in a storage that the test keeps, pages and slots hold each sequence's own tokens."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lltool.engine.batch import PAGE
from lltool.engine.cache import Checkpoint, Sequence, StatePool
from lltool.gguf.errors import InputError

PAGES = 12


class Cache(RuleBasedStateMachine):
    """Appends, forks, truncates and frees sequences at random; `texts` is what each of them shall hold."""

    slots = 0

    @initialize()
    def start(self) -> None:
        self.storage = [[-1] * PAGE for _ in range(PAGES)]
        self.states: list[list[int]] = [[] for _ in range(self.slots)]  # the whole text before each slot
        self.pool = StatePool(
            PAGES,
            self.copy_page,
            slots=self.slots,
            copy_slot=self.copy_slot,
            checkpoint_every=90,
            most_checkpoints=3,
        )
        self.sequences = [Sequence(self.pool)]
        self.texts: list[list[int]] = [[]]
        self.next_token = 0

    def copy_page(self, source: int, target: int) -> None:
        self.storage[target] = list(self.storage[source])

    def copy_slot(self, source: int, target: int) -> None:
        self.states[target] = list(self.states[source])

    @rule(number=st.integers(0, 7), count=st.integers(1, 150))
    def append(self, number: int, count: int) -> None:
        sequence, text = self.pick(number)
        before = list(sequence.pages), list(self.pool.pages.references), len(self.pool.free), sequence.slot
        try:
            sequence.reserve(count)
        except InputError:
            after = sequence.pages, self.pool.pages.references, len(self.pool.free), sequence.slot
            assert before == after, "a refusal changes nothing"
            return
        for position in range(sequence.length, sequence.length + count):
            self.storage[sequence.pages[position // PAGE]][position % PAGE] = self.next_token
            text.append(self.next_token)
            self.next_token += 1
        if sequence.slot is not None:
            assert self.states[sequence.slot] == text[:-count] or sequence.length == 0
            self.states[sequence.slot] = list(text)
        sequence.advance(count)

    @rule(number=st.integers(0, 7))
    def fork(self, number: int) -> None:
        sequence, text = self.pick(number)
        if len(self.sequences) < 8:
            self.sequences.append(sequence.fork())
            self.texts.append(list(text))

    @rule(number=st.integers(0, 7))
    def checkpoint(self, number: int) -> None:
        self.pick(number)[0].checkpoint()

    @rule(number=st.integers(0, 7), keep=st.floats(0, 1))
    def truncate(self, number: int, keep: float) -> None:
        sequence, text = self.pick(number)
        length = int(keep * len(text))
        lengths = [0, *(point.length for point in sequence.checkpoints), len(text)]
        found = max(kept for kept in lengths if kept <= length) if self.slots else length
        assert sequence.truncate(length) == length - found
        assert sequence.length == found
        del text[found:]

    @rule(number=st.integers(0, 7))
    def free(self, number: int) -> None:
        sequence, text = self.pick(number)
        sequence.free()
        text.clear()

    @invariant()
    def every_sequence_holds_its_tokens(self) -> None:
        for sequence, text in zip(self.sequences, self.texts, strict=True):
            rows = [self.storage[page][i] for page in sequence.pages for i in range(PAGE)]
            assert rows[: sequence.length] == text
            assert sequence.length == len(text)
            if self.slots and text:
                assert sequence.slot is not None
                assert self.states[sequence.slot] == text
            for point in sequence.checkpoints:
                assert self.states[point.slot] == text[: point.length]

    @invariant()
    def every_block_is_counted(self) -> None:
        for blocks, free, held in (
            (self.pool.pages, self.pool.free, [s.pages for s in self.sequences]),
            (self.pool.slots, self.pool.free_slots, [s.slots() for s in self.sequences]),
        ):
            holders = [sum(each.count(block) for each in held) for block in range(blocks.size)]
            assert blocks.references == holders
            assert sorted(free) == [block for block, count in enumerate(holders) if count == 0]

    def pick(self, number: int) -> tuple[Sequence, list[int]]:
        number %= len(self.sequences)
        return self.sequences[number], self.texts[number]


class CacheWithSlots(Cache):
    """With fewer slots than eight sequences and their checkpoints want."""

    slots = 11


TestCache = Cache.TestCase
TestCacheWithSlots = CacheWithSlots.TestCase
TestCache.settings = TestCacheWithSlots.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def make_pool(pages: int, slots: int = 0, **options: int) -> StatePool:
    return StatePool(pages, lambda source, target: None, slots=slots, copy_slot=lambda source, target: None, **options)


def append(sequence: Sequence, count: int) -> None:
    sequence.reserve(count)
    sequence.advance(count)


def test_a_full_cache_says_how_full() -> None:
    sequence = Sequence(make_pool(2))
    append(sequence, 100)
    with pytest.raises(InputError, match="1 more pages of 64 tokens wanted, 0 of 2 free"):
        sequence.reserve(29)


def test_checkpoints_are_made_in_time_and_stay_spread() -> None:
    pool = make_pool(64, 8, checkpoint_every=100, most_checkpoints=3)
    sequence = Sequence(pool)
    found = []
    for _ in range(8):
        append(sequence, 70)
        found.append([point.length for point in sequence.checkpoints])
    assert found == [[], [140], [140], [140, 280], [140, 280], [140, 280, 420], [140, 280, 420], [280, 420, 560]]
    assert len(pool.free_slots) == 8 - 3  # the slot itself is that of the last checkpoint until it is written
    assert sequence.truncate(500) == 80
    assert (sequence.length, [point.length for point in sequence.checkpoints]) == (420, [280, 420])
    assert sequence.truncate(279) == 279
    assert (sequence.length, sequence.slot, len(pool.free_slots)) == (0, None, 8)


def test_a_checkpoint_gives_way_to_the_running_text() -> None:
    pool = make_pool(64, 2, checkpoint_every=0)
    first, second = Sequence(pool), Sequence(pool)
    append(first, 5)
    first.checkpoint()
    append(first, 5)
    with pytest.raises(InputError, match="the cache is full: all 2 slots of its state are in use"):
        second.reserve(1)
    assert (second.length, second.pages, len(pool.free)) == (0, [], 63)
    first.checkpoint()
    append(first, 1)  # neither the checkpoint at 5 nor that at 10 can stay, as the slot is written
    assert len(first.checkpoints) <= 1
    assert (first.length, len(pool.free_slots)) == (11, 1 - len(first.checkpoints))


def test_a_failed_run_returns_to_the_last_checkpoint() -> None:
    sequence = Sequence(make_pool(4, 4, checkpoint_every=0))
    append(sequence, 70)
    sequence.checkpoint()
    append(sequence, 1)
    kept = sequence.checkpoints[0]
    sequence.reserve(5)
    sequence.spoil()
    assert (sequence.length, sequence.slot, sequence.checkpoints) == (70, kept.slot, [Checkpoint(70, kept.slot)])
    paged = Sequence(make_pool(4))
    append(paged, 70)
    paged.spoil()
    assert paged.length == 70
