"""A background thread that works while the caller does something else."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any


@contextmanager
def background_thread() -> Iterator[Executor]:
    """A thread that runs submitted work in order. On exit it waits for the running call and cancels the others."""
    pool = _Pool(1)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False)
        # An interrupt during a join makes Python lose the thread, and a process that exits while native code runs
        # aborts. So we wait for the work here, and Python joins the thread when it exits.
        wait([future for future in pool.futures if not future.cancel()])


class _Pool(ThreadPoolExecutor):
    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.futures: list[Any] = []

    def submit(self, *arguments: Any, **named: Any) -> Any:
        self.futures = [future for future in self.futures if not future.done()]
        future = super().submit(*arguments, **named)
        self.futures.append(future)
        return future
