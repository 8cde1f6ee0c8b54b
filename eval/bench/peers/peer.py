"""What a peer is: another engine that runs the same workloads in turns with ours."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lltool.eval.bench.plan import Settings, Workload


def runs_in_one(workload: Workload) -> int:
    """So many count as one run: a few tokens are over in milliseconds, which say little about the next."""
    return max(1, min(15, 64 // workload.tokens))


class Engine(Protocol):
    """A peer with a model loaded, in one of its modes; idle while it is not asked."""

    name: str  # a word, its version, its mode: `transformers 5.23.0 float32`
    columns: Mapping[str, Any]  # of the row, where they are not as ours

    def time(self, workload: Workload, tokens: Sequence[int]) -> int:
        """Nanoseconds of a run, the median of `runs_in_one`: behind `depth` of the tokens, which are not timed."""
        ...

    def close(self) -> None: ...


class Peer(Protocol):
    """A kind of engine, as the user names it."""

    def find_missing(self) -> str | None:
        """What must be installed first, or None."""
        ...

    def load(self, settings: Settings, runs: Sequence[Workload]) -> list[Engine]:
        """The same settings in each of its modes. Raises InputError for what it cannot do."""
        ...
