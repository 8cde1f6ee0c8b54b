"""The positions where a model differs most from its base: the text there, and the tokens that both expected."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Model
from lltool.engine.text.tokenizer import Tokenizer
from lltool.eval.divergence.divergence import DivergenceResult
from lltool.eval.divergence.logits_file import LogitsFile
from lltool.eval.divergence.reference_file import Reference
from lltool.eval.scoring.lockstep import scored_tokens

GUESSES = 5
_BEFORE = 32  # tokens of text shown before a position

Base = Model | Reference | LogitsFile
_Found = tuple[NDArray[np.integer], NDArray[np.floating]]  # token ids, best first, and ln of their probabilities


@dataclass(frozen=True)
class Guess:
    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class Position:
    """A scored token, at index `position` of window `window` (both from 0); `context` is the text just before it.

    `expected` is the text of the token that really comes next.
    """

    window: int
    position: int
    context: str
    expected: str
    divergence: float
    base_probability: float  # of the token that really comes next
    probability: float
    base_guesses: tuple[Guess, ...]  # the most probable tokens, best first
    guesses: tuple[Guess, ...]


def worst_positions(
    result: DivergenceResult, base: Base, model: Model, count: int, guesses: int = GUESSES
) -> list[Position]:
    """The `count` scored tokens of largest divergence, the largest first; models run again up to each of them."""
    context = result.windows.shape[1]
    scored, first = scored_tokens(context), context // 2 + 1
    base_top, top = _top_tokens(base, result), _top_tokens(model, result)
    found = []
    for place in np.argsort(-result.tokens, kind="stable")[:count].tolist():
        window, position = place // scored, first + place % scored
        tokens = result.windows[window]
        found.append(
            Position(
                window,
                position,
                model.tokenizer.decode(tokens[max(0, position - _BEFORE) : position].tolist()),
                _text(model.tokenizer, int(tokens[position])),
                float(result.tokens[place]),
                exp(result.base_log_probs[place]),
                exp(result.log_probs[place]),
                _guesses(model.tokenizer, base_top(place), guesses),
                _guesses(model.tokenizer, top(place), guesses),
            )
        )
    return found


def format_worst(positions: list[Position]) -> str:
    """A paragraph of text for each position."""
    return "\n\n".join(_format(number, position) for number, position in enumerate(positions, 1))


def _format(number: int, p: Position) -> str:
    return (
        f"{number}. KLD {p.divergence:.4f} at token {p.position} of chunk {p.window + 1}: "
        f"the next token is {p.expected!r}, "
        f"P(base) {100 * p.base_probability:.2f} %, P(Q) {100 * p.probability:.2f} %\n"
        f"   after {p.context!r}\n"
        f"   base expected {_list(p.base_guesses)}\n"
        f"   Q expected    {_list(p.guesses)}"
    )


def _list(guesses: tuple[Guess, ...]) -> str:
    return ", ".join(f"{guess.text!r} {100 * guess.probability:.2f} %" for guess in guesses)


def _guesses(tokenizer: Tokenizer, found: _Found, count: int) -> tuple[Guess, ...]:
    pairs = zip(found[0][:count].tolist(), np.exp(found[1][:count]).tolist(), strict=True)
    return tuple(Guess(id, _text(tokenizer, id), probability) for id, probability in pairs)


def _text(tokenizer: Tokenizer, id: int) -> str:
    return tokenizer.piece(id).decode("utf-8", "backslashreplace")


def _top_tokens(source: Base, result: DivergenceResult) -> Callable[[int], _Found]:
    """A function from the number of a scored token to the most probable tokens there."""
    match source:
        case Reference():
            return lambda place: (source.ids[place], source.log_probs[place])
        case LogitsFile():
            return lambda place: _sort(source.log_probs(np.array([place]))[0])
    context = result.windows.shape[1]

    def run(place: int) -> _Found:
        window, position = divmod(place, scored_tokens(context))
        sequence = source.new_sequence()
        try:
            logits = source.evaluate(sequence, result.windows[window, : context // 2 + 1 + position])
        finally:
            sequence.free()
        logits = logits.astype(np.float64) - logits.max()
        return _sort(logits - np.log(np.exp(logits).sum()))

    return run


def _sort(log_probs: NDArray[np.floating]) -> _Found:
    ids = np.argsort(-log_probs, kind="stable")
    return ids, log_probs[ids]
