"""Reasoning before an answer: a constraint is for the answer, and begins after it."""

from collections.abc import Sequence

from lltool.engine.calls.answer_format import Tags
from lltool.engine.calls.families import REASONING
from lltool.engine.grammar.constraint import Constraint, Trigger
from lltool.engine.text.tokenizer import Tokenizer

_LAST = 32  # tokens of a prompt, among which the tag that begins reasoning is


def opened_tags(prompt: Sequence[int], tokenizer: Tokenizer, known: Sequence[Tags] = REASONING) -> Tags | None:
    """Those of the known tags whose opening one ends the tokens of a prompt: the answer then begins with reasoning."""
    end = tokenizer.decode(prompt[-_LAST:], special=True).rstrip()
    return next((tags for tags in known if tags.open.strip() and end.endswith(tags.open.strip())), None)


def after_reasoning(constraint: Constraint, prompt: Sequence[int], tokenizer: Tokenizer) -> Constraint:
    """The constraint on what follows a prompt: if that begins with reasoning, on what comes after the closing tag."""
    tags = None if constraint.triggers else opened_tags(prompt, tokenizer)
    if tags is None:
        return constraint
    close = tokenizer.encode(tags.close, add_special=False, parse_special=True)
    if len(close) == 1:
        return constraint.after(Trigger("token", close[0], is_included=False))
    return constraint.after(Trigger("word", tags.close, is_included=False))
