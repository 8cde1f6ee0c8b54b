"""Chooses one of several files of a model, given the available memory and a preference."""

from collections.abc import Sequence
from dataclasses import dataclass

from lltool.eval.common.quantities import format_size
from lltool.gguf.errors import InputError

# The largest loss allowed, in nats per token of divergence from the source; the fastest file within it is taken. If no
# file that fits in memory loses this little, the one that loses least is taken.
TOLERANCES = {"quality": 0.0, "balance": 0.05, "speed": 0.2}

# Files with at least this share of the top speed count as equally fast. They are timed in turns and share noise.
AS_FAST = 0.95


@dataclass(frozen=True)
class RatedFile:
    """A file and the memory in bytes that it takes in use. A file that does not fit has no loss and no speed.

    `loss` is the mean divergence in nats per token, `speed` the number of tokens generated per second.
    """

    name: str
    memory: int
    loss: float | None = None
    loss_error: float = 0.0
    speed: float | None = None


@dataclass(frozen=True)
class ChosenFile:
    """The candidate to take, and a sentence with the reason."""

    candidate: RatedFile
    reason: str


def choose(candidates: Sequence[RatedFile], limit: int, preference: str = "balance") -> ChosenFile:
    """Chooses a candidate. Raises InputError if none fits in `limit` bytes."""
    assert preference in TOLERANCES
    measured = [c for c in candidates if c.memory <= limit and c.loss is not None and c.speed is not None]
    if not measured:
        least = min(candidates, key=lambda candidate: candidate.memory)
        raise InputError(
            f"nothing fits {format_size(limit)}: {least.name}, the smallest, takes {format_size(least.memory)}; "
            "ask for less context, smaller types or more memory"
        )
    least_loss = min(c.loss or 0.0 for c in measured)
    allowed = max(TOLERANCES[preference], least_loss)
    good = [c for c in measured if (c.loss or 0.0) <= allowed]
    fastest = max(good, key=lambda candidate: candidate.speed or 0.0)
    # Among equally fast files, take the one that loses least, then the smallest.
    as_fast = [c for c in good if (c.speed or 0.0) >= AS_FAST * (fastest.speed or 0.0)]
    chosen = min(as_fast, key=lambda candidate: (candidate.loss, candidate.memory))
    return ChosenFile(chosen, _explain(chosen, fastest, len(measured), len(good), limit, allowed, preference))


def _explain(
    chosen: RatedFile, fastest: RatedFile, fitting: int, good: int, limit: int, allowed: float, preference: str
) -> str:
    assert chosen.speed is not None
    facts = (
        f"takes {format_size(chosen.memory)} of {format_size(limit)} and generates {chosen.speed:.1f} tokens a second"
    )
    loss = f"{chosen.loss:.4f} ± {chosen.loss_error:.4f} nats a token" if chosen.loss else "nothing"
    many = f"of {fitting} that fit" if fitting > 1 else "the only one that fits"
    if allowed > TOLERANCES[preference] or not TOLERANCES[preference]:
        wish = "" if preference == "quality" else f" (none loses as little as {TOLERANCES[preference]} nats)"
        return f"{chosen.name} {facts}; {many}, it loses least, {loss}{wish}"
    close = f"it is about as fast as {fastest.name}, the fastest, and loses less"
    lead = "it is the fastest" if chosen is fastest else close
    return (
        f"{chosen.name} {facts}; {many}, {good} lose{'s' * (good == 1)} at most {allowed} nats a token, "
        f"and of these {lead}: it loses {loss}"
    )
