"""The engine's thread: it alone drives the scheduler of a model. Requests reach it, and are cancelled, by a queue."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lltool.engine.generate import Step, generate_step
from lltool.engine.model import Model
from lltool.engine.request import Token
from lltool.engine.scheduler import Scheduler
from lltool.engine.server.errors import ApiError
from lltool.engine.server.job import NO_TOKEN, Job, Piece
from lltool.gguf.errors import InputError

T = TypeVar("T")
_log = logging.getLogger("lltool.server")


class Runner:
    """Runs the jobs of one model, at most `most` at a time, waiting ones included.

    All methods are for the event loop's thread. A job that is cancelled leaves the batch before the next step.
    `observe` is called with each step, in the engine's thread.
    """

    def __init__(self, model: Model, *, most: int, keep: int, observe: Callable[[Step], None] | None = None) -> None:
        self.model = model
        self._observe = observe
        self.most = most
        self.steps = 0
        self._scheduler = Scheduler(model, keep=keep)
        self._wake = Condition()
        self._submitted: deque[Job] = deque()
        self._cancelled: deque[Job] = deque()
        self._jobs: dict[Job, asyncio.AbstractEventLoop] = {}
        self._asked: deque[tuple[Callable[[Scheduler], Any], asyncio.Future[Any], asyncio.AbstractEventLoop]] = deque()
        self._texts: dict[int, NDArray[np.int32]] = {}  # the last text of each slot
        self._is_closing = False
        self._thread = Thread(target=self._work, name="lltool engine", daemon=True)
        self._thread.start()

    @property
    def jobs(self) -> list[Job]:
        """Those that are not over, in the order of their arrival."""
        with self._wake:
            return list(self._jobs)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues jobs, all or none. Raises ApiError 503 if the queue is full or the model is being closed."""
        loop = asyncio.get_running_loop()
        with self._wake:
            if self._is_closing:
                raise ApiError(503, "the server is stopping", code="stopping", retry_after=5)
            if self._jobs and len(self._jobs) + len(jobs) > self.most:
                raise ApiError(
                    503, f"{len(self._jobs)} requests run or wait already; try again later", code="busy", retry_after=1
                )
            for job in jobs:
                job.submitted = perf_counter()
                if job.slot < 0:
                    job.slot = self._free_slot()
                self._jobs[job] = loop
            self._submitted.extend(jobs)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        with self._wake:
            if job in self._jobs:
                self._cancelled.append(job)
                self._wake.notify()

    async def ask(self, do: Callable[[Scheduler], T]) -> T:
        """What `do` gives, or raises, of the scheduler between two steps."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        with self._wake:
            if self._is_closing:
                raise ApiError(503, "the server is stopping", code="stopping", retry_after=5)
            self._asked.append((do, answer, loop))
            self._wake.notify()
        return await answer

    def slot_text(self, slot: int) -> NDArray[np.int32] | None:
        """The last text of a slot; None if it has had none. Raises ApiError if one is computed there now."""
        with self._wake:
            if any(job.slot == slot for job in self._jobs):
                raise ApiError(503, f"slot {slot} computes an answer; try again later", code="busy", retry_after=1)
            return self._texts.get(slot)

    def set_slot_text(self, slot: int, ids: NDArray[np.int32] | None) -> None:
        with self._wake:
            self._texts.pop(slot, None)
            if ids is not None:
                self._texts[slot] = ids

    def _free_slot(self) -> int:
        """The lowest number that no job has: a slot is a name for the last text that was computed under it."""
        taken = {job.slot for job in self._jobs}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def close(self) -> None:
        """Ends all jobs and the thread, and returns everything to the cache."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._take_orders():
            pieces: list[tuple[Job, Piece | None]] = []
            step = None if self._observe is None else Step()
            try:
                for request, token in generate_step(self._scheduler, step):
                    assert isinstance(request, Job)
                    pieces.append((request, request.piece(token)))
            except InputError as error:
                self._fail(error)
            except Exception as error:  # a fault of this program: it must not end the server
                _log.exception("a step of the engine failed")
                self._fail(error)
            self.steps += 1
            self._deliver(pieces)
            if self._observe is not None and step is not None and step.taken and step.ended:
                self._observe(step)
        for job in [*self._scheduler.running, *self._scheduler.waiting]:
            assert isinstance(job, Job)
            job.end("cancelled", "the server is stopping")
        self._scheduler.free()
        self._deliver([])

    def _take_orders(self) -> bool:
        """Waits until there is something to do; returns False when the thread is to end."""
        with self._wake:
            orders = (self._submitted, self._cancelled, self._asked)
            while not (any(orders) or self._is_closing) and self._scheduler.is_idle:
                self._wake.wait()
            submitted, cancelled, asked = list(self._submitted), list(self._cancelled), list(self._asked)
            for order in orders:
                order.clear()
            is_closing = self._is_closing
        for do, answer, loop in asked:
            _answer(do, self._scheduler, answer, loop)
        for job in submitted:
            try:
                self._scheduler.submit(job)
            except InputError as error:
                job.end("error", str(error))
        now = perf_counter()
        tasks = (*self._scheduler.running, *self._scheduler.waiting)
        late = [task for task in tasks if isinstance(task, Job) and not task.is_over and now > task.deadline]
        pieces: list[tuple[Job, Piece | None]] = []
        for job in late:
            job.end("length", "the time for the request is over")
            self._scheduler.cancel(job)
            pieces.append((job, Piece(Token(NO_TOKEN, job.flush()), None)))
        for job in cancelled:
            if not job.is_over:
                job.end("cancelled", "the client has gone")
                self._scheduler.cancel(job)
        self._deliver(pieces)
        return not is_closing

    def _fail(self, error: Exception) -> None:
        """Ends the one task that the scheduler dropped, or else all of them, so that the others can go on."""
        known = {*self._scheduler.running, *self._scheduler.waiting}
        with self._wake:
            begun = [job for job in self._jobs if job not in self._submitted and not job.is_over]
        path = self.model.file.path
        for job in [job for job in begun if job not in known] or begun:
            job.end("error", str(error).replace(str(path), path.name))  # a client need not know the folder
            self._scheduler.cancel(job)

    def _deliver(self, pieces: list[tuple[Job, Piece | None]]) -> None:
        """Hands the pieces of a step to the event loops, with the end of each job that is over."""
        with self._wake:
            over = [job for job in self._jobs if job.is_over]
            by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Piece | None]]] = {}
            for job, piece in pieces:
                by_loop.setdefault(self._jobs[job], []).append((job, piece))
            for job in over:
                job.ended = perf_counter()
                self._texts[job.slot] = job.ids
                by_loop.setdefault(self._jobs.pop(job), []).append((job, None))
        for loop, items in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver_all, items)


def _deliver_all(items: list[tuple[Job, Piece | None]]) -> None:
    for job, piece in items:
        job.inbox.put_nowait((job, piece))


def _answer(
    do: Callable[[Scheduler], T], scheduler: Scheduler, answer: "asyncio.Future[T]", loop: asyncio.AbstractEventLoop
) -> None:
    """Does what was asked for, and hands the result to the event loop."""
    result: Any = None
    failed: Exception | None = None
    try:
        result = do(scheduler)
    except Exception as error:  # whoever asked handles it
        failed = error

    def settle() -> None:
        if not answer.done():
            if failed is None:
                answer.set_result(result)
            else:
                answer.set_exception(failed)

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)
