"""The models of a server, by name: loaded when they are asked for, and unloaded when room is wanted or nobody asks."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lltool.engine.memory import MemoryModel
from lltool.engine.model import DEFAULT_CONTEXT
from lltool.engine.server.errors import ApiError
from lltool.engine.server.served import Served
from lltool.engine.server.settings import ServerSettings
from lltool.engine.server.trace import Trace
from lltool.gguf.errors import InputError
from lltool.gguf.reader import open_gguf

_log = logging.getLogger("lltool.server")


@dataclass(frozen=True)
class Source:
    """A model that the server may load: its file, and the names that it answers to, its own first."""

    path: Path
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(eq=False)
class _Loaded:
    """A loaded model. One that is `leaving` answers the requests that it has, and gets no new ones."""

    served: Served
    bytes: int
    users: int = 0
    leaving: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None


class Registry:
    """The models that there are, and those that are loaded, the least recently used first. For the event loop only."""

    def __init__(self, sources: Sequence[Source], settings: ServerSettings) -> None:
        self.sources = list(sources)
        self.settings = settings
        self.trace = None if settings.trace is None else Trace(settings.trace, settings.trace_bytes)
        self._loaded: dict[str, _Loaded] = {}
        self._changing = asyncio.Lock()  # held while models are loaded or unloaded
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def loaded(self) -> list[Served]:
        return [each.served for each in self._loaded.values()]

    def load_now(self, source: Source) -> Served:
        """Loads a model in this thread, before the event loop runs. Raises InputError."""
        # Without a budget, nobody asks for the size, and finding it takes a tenth of a second.
        size = 0 if self.settings.memory_budget is None else self._need(source)
        self._loaded[source.name] = _Loaded(self._load(source), size)
        self._loaded[source.name].idle.set()
        return self._loaded[source.name].served

    def find(self, name: str | None) -> Source:
        """The model of this name; any name is good where there is one model. Raises ApiError 404."""
        return self.sources[0] if len(self.sources) == 1 or not name else self.find_named(name)

    def find_named(self, name: str) -> Source:
        """The model of exactly this name. Raises ApiError 404."""
        for source in self.sources:
            if name in source.names or name.removesuffix(":latest") in source.names:  # as Ollama's clients say
                return source
        known = ", ".join(source.name for source in self.sources)
        raise ApiError(404, f"no model {name[:200]!r}; there are {known}", "model", "model_not_found")

    async def acquire(self, name: str | None) -> Served:
        """The model of this name, loaded if it is not; it stays so until `release`.

        Raises ApiError for an unknown name, and for a model that does not fit or cannot be loaded.
        """
        source = self.find(name)
        entry = self._loaded.get(source.name)
        if entry is None or entry.leaving:
            async with self._changing:
                entry = self._loaded.get(source.name)
                if entry is None:
                    entry = await self._load_into_room(source)
                self._use(entry)
        else:
            self._use(entry)
        return entry.served

    def release(self, served: Served) -> None:
        """Says that a request no longer needs the model."""
        entry = self._loaded.get(served.name)
        if entry is None:  # the server has stopped
            return
        entry.users -= 1
        if entry.users == 0:
            entry.idle.set()
            if self.settings.idle_seconds is not None and not entry.leaving:
                loop = asyncio.get_running_loop()
                entry.timer = loop.call_later(self.settings.idle_seconds, self._unload_idle, served.name)

    async def unload(self, name: str) -> None:
        """Unloads a model when its requests are answered; new ones wait and load it again. Raises ApiError 404."""
        source = self.find_named(name)
        async with self._changing:
            if (entry := self._loaded.get(source.name)) is not None:
                await self._remove(entry)

    def close(self) -> None:
        """Ends all requests and unloads all models."""
        for entry in self._loaded.values():
            if entry.timer is not None:
                entry.timer.cancel()
            entry.served.close()
        self._loaded.clear()
        if self.trace is not None:
            self.trace.close()

    def _use(self, entry: _Loaded) -> None:
        entry.users += 1
        entry.idle.clear()
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        self._loaded[entry.served.name] = self._loaded.pop(entry.served.name)  # the last is the one used last

    def _unload_idle(self, name: str) -> None:
        async def unload() -> None:
            async with self._changing:
                entry = self._loaded.get(name)
                if entry is not None and not entry.users:
                    await self._remove(entry)

        task = asyncio.get_running_loop().create_task(unload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_into_room(self, source: Source) -> _Loaded:
        """Loads a model after the least recently used ones have left, as far as its room is wanted."""
        try:
            need = await asyncio.to_thread(self._need, source)
            budget = self.settings.memory_budget
            if budget is not None and need > budget:
                raise ApiError(
                    503,
                    f"the model takes about {need >> 20} MiB, and the budget for all is {budget >> 20} MiB",
                    "model",
                    "model_too_large",
                )
            while not self._has_room(need):
                await self._remove(next(iter(self._loaded.values())))
            served = await asyncio.to_thread(self._load, source)
        except (InputError, OSError) as error:
            message = str(error).replace(str(source.path), source.name)
            _log.error("%s cannot be loaded: %s", source.name, error)
            raise ApiError(500, f"the model cannot be loaded: {message}", "model", "model_not_loaded") from None
        entry = self._loaded[source.name] = _Loaded(served, need)
        _log.info("loaded model=%s", source.name)
        return entry

    def _has_room(self, need: int) -> bool:
        if not self._loaded:
            return True
        most, budget = self.settings.models_max, self.settings.memory_budget
        held = sum(entry.bytes for entry in self._loaded.values())
        return (not most or len(self._loaded) < most) and (budget is None or held + need <= budget)

    async def _remove(self, entry: _Loaded) -> None:
        entry.leaving = True
        try:
            await entry.idle.wait()
        except BaseException:
            entry.leaving = False  # whoever wanted the room has gone
            raise
        if entry.timer is not None:
            entry.timer.cancel()
        del self._loaded[entry.served.name]
        await asyncio.to_thread(entry.served.close)
        _log.info("unloaded model=%s", entry.served.name)

    def _load(self, source: Source) -> Served:
        return Served.load(source.name, source.path, self.settings, self.trace)

    def _need(self, source: Source) -> int:
        """The bytes that a model takes besides the process itself. Raises InputError for one that cannot run."""
        load = self.settings.load
        with open_gguf(source.path) as file:
            memory = MemoryModel(file, file.size)
            context = load.get("context") or min(memory.config.context_length, DEFAULT_CONTEXT)
            types = {name: load[name] for name in ("cache_type_k", "cache_type_v") if load.get(name)}
            batch = load.get("batch", 512)
            need = memory.need(context, sequences=self.settings.parallel, batch=batch, **types)
        return need.total - need.process
