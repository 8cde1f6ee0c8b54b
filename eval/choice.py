"""Which of several files of one model to take, given how much memory there is and what matters."""

from collections.abc import Sequence
from dataclasses import dataclass

from lltool.gguf.errors import InputError

# What may be lost at most, in nats a token of divergence from the source; the fastest file within it is taken. Where
# no file that fits loses as little, the one that loses least is taken.
TOLERANCES = {"quality": 0.0, "balance": 0.05, "speed": 0.2}

# Of the fastest's speed: files this close count as equally fast. They are timed in turns, so noise is common to them.
AS_FAST = 0.95


@dataclass(frozen=True)
class Candidate:
    """A file with the memory, in bytes, that it takes in use. What does not fit has no loss and no speed.

    `loss` is mean divergence in nats a token, `speed` generated tokens a second.
    """

    name: str
    memory: int
    loss: float | None = None
    loss_error: float = 0.0
    speed: float | None = None


@dataclass(frozen=True)
class Choice:
    """The candidate to take and why, in a sentence."""

    candidate: Candidate
    reason: str


def choose(candidates: Sequence[Candidate], limit: int, preference: str = "balance") -> Choice:
    """Raises InputError when no candidate fits in `limit` bytes."""
    assert preference in TOLERANCES
    measured = [c for c in candidates if c.memory <= limit and c.loss is not None and c.speed is not None]
    if not measured:
        least = min(candidates, key=lambda candidate: candidate.memory)
        raise InputError(
            f"nothing fits {format_bytes(limit)}: {least.name}, the smallest, takes {format_bytes(least.memory)}; "
            "ask for less context, smaller types or more memory"
        )
    least_loss = min(c.loss or 0.0 for c in measured)
    allowed = max(TOLERANCES[preference], least_loss)
    good = [c for c in measured if (c.loss or 0.0) <= allowed]
    fastest = max(good, key=lambda candidate: candidate.speed or 0.0)
    # Of those that are as fast as the fastest the one that loses least, then the smallest.
    as_fast = [c for c in good if (c.speed or 0.0) >= AS_FAST * (fastest.speed or 0.0)]
    chosen = min(as_fast, key=lambda candidate: (candidate.loss, candidate.memory))
    return Choice(chosen, _explain(chosen, fastest, len(measured), len(good), limit, allowed, preference))


def _explain(
    chosen: Candidate, fastest: Candidate, fitting: int, good: int, limit: int, allowed: float, preference: str
) -> str:
    assert chosen.speed is not None
    facts = f"takes {format_bytes(chosen.memory)} of {format_bytes(limit)} and makes {chosen.speed:.1f} tokens a second"
    loss = f"{chosen.loss:.4f} ± {chosen.loss_error:.4f} nats a token" if chosen.loss else "nothing"
    many = f"of {fitting} that fit" if fitting > 1 else "the only one that fits"
    if allowed > TOLERANCES[preference] or not TOLERANCES[preference]:
        wish = "" if preference == "quality" else f" (none loses as little as {TOLERANCES[preference]} nats)"
        return f"{chosen.name} {facts}; {many}, it loses least, {loss}{wish}"
    lead = "it is the fastest" if chosen is fastest else f"it is as fast as any, as {fastest.name}, and loses less"
    return (
        f"{chosen.name} {facts}; {many}, {good} lose{'s' * (good == 1)} at most {allowed} nats a token, "
        f"and of these {lead}: it loses {loss}"
    )


def format_bytes(count: int) -> str:
    """In the units of `--ram`: thousands of millions."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
