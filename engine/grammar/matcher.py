"""Follows a constraint through one text: which tokens are allowed next, and whether the text may end."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from lltool.engine.grammar.constraint import Trigger
from lltool.engine.grammar.vocabulary import GrammarVocabulary
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from llguidance import LLMatcher

T = TypeVar("T")


class Matcher:
    """A text that grows under a constraint. It belongs to one text; `fork` gives another for one that branches off.

    While a lazy constraint waits for its trigger (`is_waiting`), everything is allowed. All methods raise InputError
    when the constraint exceeds its limits (too ambiguous, or too many states), and the text cannot go on.
    """

    def __init__(self, native: "LLMatcher", vocabulary: GrammarVocabulary, triggers: tuple[Trigger, ...] = ()) -> None:
        self._native, self._vocabulary = native, vocabulary
        self._triggers = triggers
        self.is_waiting = bool(triggers)
        self._ids: list[int] = []  # all accepted tokens
        self._consumed: list[int] = []  # for each of them, how many tokens the native matcher took
        self._free = bytearray()  # the text before the trigger
        self._mask: NDArray[np.uint32] | None = None
        vocabulary_words = -(-(vocabulary.size + (not vocabulary.ends)) // 32)  # without an end, llguidance adds one
        self._buffer = np.zeros(vocabulary_words, np.uint32)

    def fork(self) -> Self:
        other = type(self)(self._native.deep_copy(), self._vocabulary, self._triggers)
        other.is_waiting = self.is_waiting
        other._ids, other._consumed, other._free = self._ids.copy(), self._consumed.copy(), self._free.copy()
        return other

    def allowed(self) -> NDArray[np.uint32] | None:
        """The mask of the tokens allowed next (ceil(V / 32),), bit i % 32 of word i // 32 for token i; None for all.

        The array changes with the next call after an `accept` or `rollback`.
        """
        if self.is_waiting:
            return None
        if self._mask is None:
            buffer = self._buffer
            self._native.unsafe_compute_mask_ptr(buffer.ctypes.data, buffer.nbytes)
            self._check()
            if not self._vocabulary.ends and (bit := self._vocabulary.size) // 32 < len(buffer):
                buffer[bit // 32] &= ~np.uint32(1 << bit % 32)
            self._mask = buffer[: self._vocabulary.words]
        return self._mask

    def allows(self, id: int) -> bool:
        """Whether a token is allowed next; cheaper than the mask, which has the same answer."""
        return self.is_waiting or bool(self._checked(self._native.validate_tokens([id])))

    def accept(self, id: int) -> None:
        """Takes the next token. Raises InputError if the constraint does not allow it."""
        if self.is_waiting:
            self._wait(id)
        else:
            self._consume(id, [id])
        self._ids.append(id)

    def forced(self) -> list[int]:
        """The tokens that must come next, in the division that the model was trained on; often none."""
        if self.is_waiting or self.is_complete:
            return []
        found = self._checked(self._native.compute_ff_tokens())
        ends = self._vocabulary.ends
        return found if not ends or not set(ends).intersection(found) else []

    def validate(self, ids: list[int]) -> int:
        """How many of these tokens could be accepted one after another. A lazy constraint that waits takes them all."""
        return len(ids) if self.is_waiting else self._checked(self._native.validate_tokens(ids))

    def rollback(self, count: int) -> None:
        """Takes back the last `count` accepted tokens."""
        if not 0 <= count <= len(self._ids):
            raise ValueError(f"{count} tokens to take back, wanted at most {len(self._ids)}")
        if not count:
            return
        taken = sum(self._consumed[-count:])
        del self._ids[-count:], self._consumed[-count:]
        self._mask = None
        if taken:
            self._checked(self._native.rollback(taken))
        if self._triggers and not sum(self._consumed):
            self.is_waiting, ids = True, self._ids
            self._ids, self._consumed, self._free = [], [], bytearray()
            for id in ids:
                self.accept(id)

    @property
    def may_end(self) -> bool:
        """Whether the text may end here."""
        return self.is_waiting or bool(self._checked(self._native.is_accepting()))

    @property
    def is_complete(self) -> bool:
        """Whether the text can only end here."""
        return not self.is_waiting and bool(self._checked(self._native.is_stopped()))

    def _consume(self, id: int, ids: list[int]) -> None:
        self._mask = None
        if ids and not self._native.consume_tokens(ids):
            tokens = self._vocabulary.tokenizer.tokens
            raise InputError(f"the grammar does not allow token {id} ({tokens[id]!r}) here: {self._native.get_error()}")
        self._consumed.append(len(ids))

    def _wait(self, id: int) -> None:
        """Takes a token of the text before the trigger, or the trigger itself with what follows it in this token."""
        for trigger in self._triggers:
            if trigger.value == id and trigger.kind == "token":
                self.is_waiting = False
                self._consume(id, [id] if trigger.is_included else [])
                return
        tokenizer = self._vocabulary.tokenizer
        before = len(self._free)
        if not tokenizer.is_control(id):
            self._free += tokenizer.piece(id)
        starts = [start for trigger in self._triggers if (start := _find(trigger, self._free, before)) is not None]
        if not starts:
            self._consumed.append(0)
            return
        self.is_waiting = False
        rest = bytes(self._free[min(starts) :])
        self._consume(id, self._vocabulary.native.tokenize_bytes(rest))

    def _check(self) -> None:
        if self._native.is_error():
            raise InputError(f"the grammar cannot be followed any further: {_first_line(self._native.get_error())}")

    def _checked(self, value: T) -> T:
        self._check()
        return value


def _find(trigger: Trigger, text: bytearray, before: int) -> int | None:
    """The byte from which the constraint applies, if the trigger is in `text`, of which `before` bytes were there."""
    if trigger.kind == "token":
        return None
    if trigger.kind == "word":
        word = str(trigger.value).encode()
        start = text.find(word, max(0, before - len(word) + 1))
        return None if start < 0 else start + (0 if trigger.is_included else len(word))
    search: Callable[[str, str], re.Match[str] | None] = re.search
    if trigger.kind == "pattern_full":
        search = re.fullmatch
    found = search(str(trigger.value), readable := text.decode("utf-8", "ignore"))
    if found is None:
        return None
    group = next((number for number in range(1, (found.re.groups or 0) + 1) if found.group(number)), 0)
    place = found.start(group) if trigger.is_included else found.end(group)
    return len(readable[:place].encode())


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
