"""The thread that pools texts: whose texts share a batch, and what happens to a request that nobody waits for."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.server.embedder import Embedder, Text
from lltool.engine.server.errors import ApiError
from lltool.gguf.errors import InputError
from tests.engine.server.tiny_server import SETTINGS


class Stub(Embedder):
    """Batches of four tokens; a text's row is its first token. A batch waits until it may be computed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.may_go = Event(), Event()
        settings = replace(SETTINGS, parallel=1, queue=1)
        super().__init__(cast(Any, SimpleNamespace(settings=settings, model=SimpleNamespace(batch=4))))

    def _compute(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        first = [ids[0] for ids, _ in texts]
        self.batches.append(first)
        self.begun.set()
        assert self.may_go.wait(30)
        if 13 in first:
            raise InputError("no thirteen")
        return np.array(first, np.float32)[:, None]


def texts(*first: int) -> list[Text]:
    return [([each, 0], [0, 0]) for each in first]


async def begin(embedder: Stub, *first: int) -> "asyncio.Task[NDArray[np.float32]]":
    """A request whose texts wait, or are computed already."""
    task = asyncio.create_task(embedder.pool(texts(*first)))
    await asyncio.sleep(0)
    return task


def run(do: Any) -> Stub:
    """Runs `do` while the batch of texts 1 and 2 is held back."""
    embedder = Stub()

    async def main() -> None:
        first = await begin(embedder, 1, 2)
        await asyncio.to_thread(embedder.begun.wait, 30)
        await do(embedder)
        embedder.may_go.set()
        assert (await first).ravel().tolist() == [1, 2]

    try:
        asyncio.run(main())
    finally:
        embedder.may_go.set()
        embedder.close()
    return embedder


def test_requests_take_turns_in_a_batch() -> None:
    async def do(embedder: Stub) -> None:
        long, short = await begin(embedder, 3, 4, 5, 6), await begin(embedder, 7)
        embedder.may_go.set()
        assert (await short).ravel().tolist() == [7]
        assert (await long).ravel().tolist() == [3, 4, 5, 6]

    assert run(do).batches == [[1, 2], [3, 7], [4, 5], [6]]


def test_a_request_that_nobody_waits_for_is_not_computed() -> None:
    async def do(embedder: Stub) -> None:
        gone, other = await begin(embedder, 3, 4, 5, 6), await begin(embedder, 7)
        gone.cancel()
        await asyncio.sleep(0)
        embedder.may_go.set()
        assert (await other).ravel().tolist() == [7]

    assert run(do).batches == [[1, 2], [7]]


def test_only_the_requests_of_a_batch_fail() -> None:
    async def do(embedder: Stub) -> None:
        failing, other = await begin(embedder, 13, 14, 15), await begin(embedder, 7, 8)
        embedder.may_go.set()
        for task in (failing, other):  # they share the batch
            with pytest.raises(InputError, match="no thirteen"):
                await task
        assert (await embedder.pool(texts(9))).ravel().tolist() == [9]

    assert run(do).batches == [[1, 2], [13, 7], [9]]


def test_the_queue_is_bounded() -> None:
    async def do(embedder: Stub) -> None:
        waiting = [await begin(embedder, 3), await begin(embedder, 4)]
        with pytest.raises(ApiError) as refused:
            await embedder.pool(texts(5))
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        embedder.may_go.set()
        await asyncio.gather(*waiting)

    run(do)


def test_closing_ends_what_waits() -> None:
    embedder = Stub()

    async def main() -> None:
        await begin(embedder, 1, 2)
        await asyncio.to_thread(embedder.begun.wait, 30)
        waiting = await begin(embedder, 3)
        closing = asyncio.create_task(asyncio.to_thread(embedder.close))
        while not embedder._is_closing:
            await asyncio.sleep(0)
        embedder.may_go.set()
        await closing
        with pytest.raises(ApiError, match="stopping"):
            await waiting
        with pytest.raises(ApiError, match="stopping"):
            await embedder.pool(texts(5))

    asyncio.run(main())
    assert embedder.batches == [[1, 2]]
