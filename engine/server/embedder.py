"""The thread that pools texts: it makes the vectors of an embedding model and the scores of a reranker."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lltool.engine.embed import embed
from lltool.engine.model import Model, load_model
from lltool.engine.rank import pool_pairs
from lltool.engine.server.errors import ApiError
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from lltool.engine.server.served import Served

_log = logging.getLogger("lltool.server")
Text: TypeAlias = tuple[list[int], list[int]]
"""The ids of a text's tokens, and their types."""


@dataclass(eq=False)
class _Texts:
    """The texts of a request, of which `begun` have been taken, and the rows that were computed of them."""

    texts: Sequence[Text]
    rows: "asyncio.Future[NDArray[np.float32]]"
    loop: asyncio.AbstractEventLoop
    begun: int = 0
    done: list[NDArray[np.float32]] = field(default_factory=list)


class Embedder:
    """Pools texts as the model's file says. A batch has texts of all requests, one of each in turn.

    A model that generates is loaded once more for this when its first text comes; both share the mapped weights. A
    request that nobody waits for any more leaves before the next batch.
    """

    def __init__(self, served: "Served") -> None:
        self._served = served
        self._own: Model | None = None
        self._most = served.settings.parallel + served.settings.queue
        self._wake = Condition()
        self._waiting: deque[_Texts] = deque()
        self._is_closing = False
        self._thread = Thread(target=self._work, name="lltool vectors", daemon=True)
        self._thread.start()

    async def pool(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """A row for each text: its vector, not normalized, or the outputs of a reranker's classifier.

        Raises ApiError if too many requests wait, and InputError as `embed` does.
        """
        loop = asyncio.get_running_loop()
        wanted = _Texts(texts, loop.create_future(), loop)
        with self._wake:
            if self._is_closing:
                raise ApiError(503, "the server is stopping", code="stopping", retry_after=5)
            if len(self._waiting) >= self._most:
                waiting = f"{len(self._waiting)} requests wait already; try again later"
                raise ApiError(503, waiting, code="busy", retry_after=1)
            self._waiting.append(wanted)
            self._wake.notify()
        return await wanted.rows

    def close(self) -> None:
        """Ends all requests and the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()
        stopping = ApiError(503, "the server is stopping", code="stopping", retry_after=5)
        for wanted in self._waiting:
            _deliver(wanted, stopping)
        if self._own is not None:
            self._own.close()

    def _work(self) -> None:
        while chosen := self._choose():
            try:
                rows = self._compute([wanted.texts[index] for wanted, index in chosen])
            except (InputError, MemoryError) as error:
                self._fail(chosen, error)
                continue
            except Exception as error:  # a fault of this program: it must not end the server
                _log.exception("a batch of texts failed")
                self._fail(chosen, error)
                continue
            for (wanted, _), row in zip(chosen, rows, strict=True):
                wanted.done.append(row)
            for wanted in dict.fromkeys(wanted for wanted, _ in chosen):
                if len(wanted.done) == len(wanted.texts):
                    _deliver(wanted, np.stack(wanted.done))

    def _choose(self) -> list[tuple[_Texts, int]]:
        """Waits for texts, and takes as many as a batch has tokens for; none when the thread is to end."""
        chosen: list[tuple[_Texts, int]] = []
        tokens = 0
        with self._wake:
            while not chosen:
                while not (self._waiting or self._is_closing):
                    self._wake.wait()
                if self._is_closing:
                    return []
                while self._waiting:
                    wanted = self._waiting[0]
                    size = len(wanted.texts[wanted.begun][0])
                    if chosen and tokens + size > self._served.model.batch:
                        break
                    self._waiting.popleft()
                    if wanted.rows.done():  # the client has gone
                        continue
                    chosen.append((wanted, wanted.begun))
                    tokens, wanted.begun = tokens + size, wanted.begun + 1
                    if wanted.begun < len(wanted.texts):
                        self._waiting.append(wanted)
        return chosen

    def _compute(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        model = self._model()
        if model.config.pooling.ranks:
            return pool_pairs(model, texts)
        return embed(model, [ids for ids, _ in texts], normalize=False)

    def _model(self) -> Model:
        served = self._served
        if served.makes != "texts":
            return served.model
        if self._own is None:
            self._own = load_model(served.path, output="pooled", **served.settings.load)
        return self._own

    def _fail(self, chosen: Sequence[tuple[_Texts, int]], error: Exception) -> None:
        failed = {wanted for wanted, _ in chosen}
        with self._wake:
            self._waiting = deque(wanted for wanted in self._waiting if wanted not in failed)
        for wanted in failed:
            _deliver(wanted, error)


def _deliver(wanted: _Texts, result: NDArray[np.float32] | Exception) -> None:
    """Hands the rows of a request, or why there are none, to its event loop."""

    def settle() -> None:
        if not wanted.rows.done():
            if isinstance(result, Exception):
                wanted.rows.set_exception(result)
            else:
                wanted.rows.set_result(result)

    if not wanted.loop.is_closed():
        wanted.loop.call_soon_threadsafe(settle)
