"""The protocols of a peer: another engine that runs the same workloads in turns with ours."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lltool.eval.bench.settings import Settings, Workload


def runs_in_one(workload: Workload) -> int:
    """How many runs are timed as one: a few tokens take milliseconds, which say little about the next run."""
    return max(1, min(15, 64 // workload.tokens))


class Engine(Protocol):
    """A peer with a model loaded, in one of its modes; it is idle between calls."""

    name: str  # family, version and mode: `transformers 5.23.0 float32`
    columns: Mapping[str, Any]  # columns of the row that differ from ours

    def time(self, workload: Workload, tokens: Sequence[int]) -> int:
        """Nanoseconds of a run, the median of `runs_in_one`; the first `depth` of the tokens are not timed."""
        ...

    def close(self) -> None: ...


class Peer(Protocol):
    """An engine that the user named; no model is loaded yet."""

    def find_missing(self) -> str | None:
        """What must be installed first, or None."""
        ...

    def load(self, settings: Settings, runs: Sequence[Workload]) -> list[Engine]:
        """An engine for each mode, with the same settings. Raises InputError for runs that the peer cannot do."""
        ...
