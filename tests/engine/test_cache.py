"""The cache's bookkeeping: pages in a storage that the test itself keeps always hold every sequence's own tokens."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lltool.engine.batch import PAGE
from lltool.engine.cache import PagePool, Sequence
from lltool.gguf.errors import InputError

PAGES = 12


class Cache(RuleBasedStateMachine):
    """Appends, forks, truncates and frees sequences at random; `texts` is what each of them shall hold."""

    @initialize()
    def start(self) -> None:
        self.storage = [[-1] * PAGE for _ in range(PAGES)]
        self.pool = PagePool(PAGES, self.copy_page)
        self.sequences = [Sequence(self.pool)]
        self.texts: list[list[int]] = [[]]
        self.next_token = 0

    def copy_page(self, source: int, target: int) -> None:
        self.storage[target] = list(self.storage[source])

    @rule(number=st.integers(0, 7), count=st.integers(1, 150))
    def append(self, number: int, count: int) -> None:
        sequence, text = self.pick(number)
        before = list(sequence.pages), list(self.pool.references), len(self.pool.free)
        try:
            sequence.reserve(count)
        except InputError:
            assert before == (sequence.pages, self.pool.references, len(self.pool.free)), "a refusal changes nothing"
            return
        for _ in range(count):
            self.storage[sequence.pages[sequence.length // PAGE]][sequence.length % PAGE] = self.next_token
            text.append(self.next_token)
            sequence.length += 1
            self.next_token += 1

    @rule(number=st.integers(0, 7))
    def fork(self, number: int) -> None:
        sequence, text = self.pick(number)
        if len(self.sequences) < 8:
            self.sequences.append(sequence.fork())
            self.texts.append(list(text))

    @rule(number=st.integers(0, 7), keep=st.floats(0, 1))
    def truncate(self, number: int, keep: float) -> None:
        sequence, text = self.pick(number)
        length = int(keep * len(text))
        sequence.truncate(length)
        del text[length:]

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

    @invariant()
    def every_page_is_counted(self) -> None:
        holders = [sum(s.pages.count(page) for s in self.sequences) for page in range(PAGES)]
        assert self.pool.references == holders
        assert sorted(self.pool.free) == [page for page, count in enumerate(holders) if count == 0]

    def pick(self, number: int) -> tuple[Sequence, list[int]]:
        number %= len(self.sequences)
        return self.sequences[number], self.texts[number]


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_full_cache_says_how_full() -> None:
    sequence = Sequence(PagePool(2, lambda source, target: None))
    sequence.reserve(100)
    sequence.length = 100
    with pytest.raises(InputError, match="1 more pages of 64 tokens wanted, 0 of 2 free"):
        sequence.reserve(29)
