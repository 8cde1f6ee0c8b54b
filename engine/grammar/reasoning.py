"""Reasoning before an answer: a constraint is for the answer, and begins after it."""

from collections.abc import Sequence

from lltool.engine.grammar.constraint import Constraint, Trigger
from lltool.engine.text.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"


def begins_reasoning(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a prompt ends with an open think tag."""
    return tokenizer.decode(ids[-16:], special=True).rstrip().endswith(OPEN)


def after_reasoning(constraint: Constraint, ids: Sequence[int], tokenizer: Tokenizer) -> Constraint:
    """The constraint on what follows the prompt `ids`: if it begins with reasoning, on what comes after that."""
    if constraint.triggers or not begins_reasoning(ids, tokenizer):
        return constraint
    close = tokenizer.encode(CLOSE, add_special=False, parse_special=True)
    if len(close) == 1:
        return constraint.after(Trigger("token", close[0], is_included=False))
    return constraint.after(Trigger("word", CLOSE, is_included=False))
