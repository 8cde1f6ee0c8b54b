"""Waits for a call: the constraint on calls begins at the trigger of one, but not within reasoning."""

from typing import Self

from lltool.engine.calls.answer_format import Tags
from lltool.engine.grammar.matcher import Matcher


class CallMatcher(Matcher):
    """A lazy matcher whose triggers do not count within the reasoning that an answer begins with.

    With `is_anchored`, a trigger is searched only in the text since the last control token.
    """

    reasoning: Tags | None = None
    is_open = False
    is_anchored = False

    @classmethod
    def of(cls, matcher: Matcher, *, reasoning: Tags | None, is_open: bool, is_anchored: bool) -> Self:
        """Makes one of a matcher at its beginning. With `is_open`, the text begins within reasoning."""
        made = cls(matcher._native, matcher._vocabulary, matcher._triggers)
        made.reasoning, made.is_open, made.is_anchored = reasoning, is_open, is_anchored
        made._begin()
        return made

    def fork(self) -> Self:
        other = super().fork()
        other.reasoning, other.is_open, other.is_anchored = self.reasoning, self.is_open, self.is_anchored
        other._state, other._seen = self._state, self._seen
        return other

    def rollback(self, count: int) -> None:
        if count and self._triggers:
            self._begin()  # the tokens that stay are read again if none of them belongs to the call
        super().rollback(count)

    def _begin(self) -> None:
        """Before the first token: "open" within reasoning, "start" where it may begin, "content" where it cannot."""
        has_tags = self.reasoning is not None and bool(self.reasoning.open or self.is_open)
        self._state = "open" if self.is_open else "start" if has_tags else "content"
        self._seen = ""

    def _wait(self, id: int) -> None:
        if self._state != "content" and self._is_before_content(id):
            self._consumed.append(0)
            return
        if self.is_anchored and self._vocabulary.tokenizer.is_control(id):
            self._free.clear()
        super()._wait(id)

    def _is_before_content(self, id: int) -> bool:
        """Whether a token is part of reasoning, or may become so."""
        assert self.reasoning is not None
        tokenizer = self._vocabulary.tokenizer
        self._seen += tokenizer.piece(id).decode("utf-8", "replace")
        if self._state == "start":
            begun, opening = self._seen.lstrip(), self.reasoning.open.strip()
            if begun.startswith(opening):
                self._state, self._seen = "open", begun[len(opening) :]
            elif not opening.startswith(begun):
                self._state = "content"
                return False
        close = self.reasoning.close.strip()
        if self._state == "open":
            if close in self._seen:
                self._state = "content"
            else:
                self._seen = self._seen[-len(close) :]
        return True
