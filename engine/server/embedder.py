"""The model once more, loaded for vectors of texts when the first embedding is asked for."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lltool.engine.embed import embed
from lltool.engine.model import Model, load_model
from lltool.engine.server.errors import ApiError

if TYPE_CHECKING:
    from lltool.engine.server.served import Served

_AT_ONCE = 16  # texts, after which a request that nobody waits for any more ends


class Embedder:
    """A model that gives vectors of texts, pooled as its file says.

    It computes in a thread of its own, one request after another.
    """

    def __init__(self, served: "Served") -> None:
        self._served = served
        self._pool = ThreadPoolExecutor(1, "lltool embeddings")
        self._model: Model | None = None
        self._waiting = 0

    async def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The vectors of texts of token ids, (N, width), of length 1. Raises ApiError if too many requests wait."""
        settings = self._served.settings
        if self._waiting > settings.queue:
            raise ApiError(503, f"{self._waiting} requests wait already; try again later", code="busy", retry_after=1)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            found = []
            for start in range(0, len(texts), _AT_ONCE):
                part = texts[start : start + _AT_ONCE]
                found.append(await loop.run_in_executor(self._pool, self._embed, part))
            return np.concatenate(found)
        finally:
            self._waiting -= 1

    def _embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if self._model is None:
            self._model = load_model(self._served.path, output="pooled", **self._served.settings.load)
        return embed(self._model, texts)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._model is not None:
            self._model.close()
