"""A fair lock: one thread at a time uses a model, in the order in which the threads asked."""

from contextlib import AbstractContextManager
from os import getpid
from threading import Lock, RLock, get_ident


class Turns:
    """`with turns.wait():` waits for a turn and holds it; the same thread may nest it."""

    def __init__(self) -> None:
        self._turn = _Turn()
        self._nested = RLock()  # only ever entered by the thread whose turn it is
        self._process = getpid()

    def wait(self) -> AbstractContextManager[object]:
        """A context manager; entering it waits until it is this thread's turn."""
        if self._process != getpid():
            Turns.__init__(self)  # in a forked child, the threads that hold the parent's locks do not exist
        return self._nested if self._turn._is_owned() else self._turn


class _Turn(type(RLock())):  # type: ignore[misc]  # the interpreter's own class has no public name
    """A lock that threads acquire in the order in which they asked.

    A plain lock is unfair: a thread that releases it can acquire it again before a sleeping thread wakes. Here each
    thread waits for the one that asked before it, and only the first in the queue waits for the lock itself. An
    interrupt leaves nothing locked: the inherited `__exit__` is a single step of the interpreter, and an interrupted
    `__enter__` is undone.
    """

    def __init__(self) -> None:
        self._last = Lock()  # held by the last thread in the queue until its turn comes
        self._queue = RLock()  # protects `_last`
        self._waiting: set[int] = set()

    def __enter__(self) -> bool:
        mine, thread = Lock(), get_ident()
        if thread in self._waiting:  # a finalizer runs in a thread that is itself in the queue
            return bool(super().__enter__())
        try:
            mine.acquire()
            self._waiting.add(thread)
            with self._queue:
                before, self._last = self._last, mine
            with before:
                pass
            self.acquire()
            self._waiting.discard(thread)
            mine.release()
        except BaseException:
            self._waiting.discard(thread)
            if mine.locked():
                mine.release()
            if self._is_owned():
                self.release()
            raise
        return True
