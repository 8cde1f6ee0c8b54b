"""The models of a server, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lltool.engine.server.errors import ApiError
from lltool.engine.server.served import Served
from lltool.engine.server.settings import ServerSettings


@dataclass(frozen=True)
class Source:
    """A model that the server may load: its file, and the names that it answers to, its own first."""

    path: Path
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]


class Registry:
    """The models that there are, and those that are loaded. For the event loop only."""

    def __init__(self, sources: Sequence[Source], settings: ServerSettings) -> None:
        self.sources = list(sources)
        self.settings = settings
        self._loaded: dict[str, Served] = {}

    @property
    def loaded(self) -> list[Served]:
        return list(self._loaded.values())

    def load_now(self, source: Source) -> Served:
        """Loads a model in this thread. Raises InputError."""
        served = Served.load(source.name, source.path, self.settings)
        self._loaded[source.name] = served
        return served

    def find(self, name: str | None) -> Source:
        """The model of this name; any name is good where there is one model. Raises ApiError 404."""
        return self.sources[0] if len(self.sources) == 1 or not name else self.find_named(name)

    def find_named(self, name: str) -> Source:
        """The model of exactly this name. Raises ApiError 404."""
        for source in self.sources:
            if name in source.names or name.removesuffix(":latest") in source.names:  # as Ollama's clients say
                return source
        known = ", ".join(source.name for source in self.sources)
        raise ApiError(404, f"no model {name!r}; there are {known}", "model", "model_not_found")

    async def acquire(self, name: str | None) -> Served:
        """The model of this name, loaded; it stays so until `release`."""
        return self._loaded[self.find(name).name]

    def release(self, served: Served) -> None:
        """Says that a request no longer needs the model."""

    def close(self) -> None:
        for served in self._loaded.values():
            served.close()
        self._loaded.clear()
