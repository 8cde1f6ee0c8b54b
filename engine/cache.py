"""The paged key/value cache's bookkeeping: which pages hold which positions of which sequence.

A page holds PAGE tokens of all layers. Sequences share the pages of a common prefix by reference count; one that is
about to write into a shared page takes a copy of it first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from lltool.engine.batch import PAGE
from lltool.gguf.errors import InputError


@dataclass(eq=False)
class PagePool:
    """`size` pages; `copy_page(source, target)` is the executor's."""

    size: int
    copy_page: Callable[[int, int], None]
    references: list[int] = field(init=False)
    free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.references = [0] * self.size
        self.free = list(range(self.size - 1, -1, -1))

    def take(self, count: int) -> list[int]:
        """`count` unused pages, or none at all and an InputError."""
        if count > len(self.free):
            raise InputError(
                f"the cache is full: {count} more pages of {PAGE} tokens wanted, {len(self.free)} of {self.size} free; "
                "load the model with a larger context or more sequences"
            )
        pages = [self.free.pop() for _ in range(count)]
        for page in pages:
            self.references[page] = 1
        return pages

    def share(self, pages: list[int]) -> None:
        for page in pages:
            self.references[page] += 1

    def release(self, pages: list[int]) -> None:
        for page in pages:
            self.references[page] -= 1
            if self.references[page] == 0:
                self.free.append(page)


@dataclass(eq=False)
class Sequence:
    """The tokens of one text, as the cache holds them: `length` of them, in `pages` in order."""

    pool: PagePool
    length: int = 0
    pages: list[int] = field(default_factory=list)

    def reserve(self, count: int) -> None:
        """Makes sure that `count` more tokens can be written behind the last one; without room nothing changes."""
        last = self.length // PAGE  # where the next token goes
        shared = self.length % PAGE > 0 and self.pool.references[self.pages[last]] > 1
        missing = max(0, -(-(self.length + count) // PAGE) - len(self.pages))
        taken = self.pool.take(missing + shared)
        if shared:
            copy = taken.pop()
            self.pool.copy_page(self.pages[last], copy)
            self.pool.release([self.pages[last]])
            self.pages[last] = copy
        self.pages += taken

    def fork(self) -> "Sequence":
        """A sequence with the same past, sharing its pages."""
        pages = self.pages[: -(-self.length // PAGE)]
        self.pool.share(pages)
        return Sequence(self.pool, self.length, pages)

    def truncate(self, length: int) -> None:
        """Forgets all tokens from position `length` on."""
        assert 0 <= length <= self.length, f"cannot cut {self.length} tokens to {length}"
        keep = -(-length // PAGE)
        self.pool.release(self.pages[keep:])
        del self.pages[keep:]
        self.length = length

    def free(self) -> None:
        """Gives all pages back; the sequence is empty then and can be used again."""
        self.truncate(0)
