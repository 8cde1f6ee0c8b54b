"""A conversation with a model: its messages, and their tokens in the cache. Each turn computes only the new tokens."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lltool.engine.generate import Dialogue, Generation, Token
from lltool.engine.sampling import Sampler
from lltool.gguf.errors import InputError

if TYPE_CHECKING:
    from lltool.engine.calls.chat_format import ChatFormat, ToolUse
    from lltool.engine.calls.parser import AnswerParser
    from lltool.engine.calls.tool import Call
    from lltool.engine.grammar.constraint import Constraint
    from lltool.engine.grammar.matcher import Matcher
    from lltool.engine.model import Model
    from lltool.engine.text.chat import ChatTemplate, Message


class Conversation:
    """Messages of a user and a model. One thread at a time may use it.

    The cache keeps the tokens of the last turn. The next turn encodes all messages with the template, keeps the longest
    prefix that both have in common, and computes only the rest. The settings can be changed between two answers:
    `sampler`; `system`, the text of the system message ("" for none); `max_tokens` of an answer (None for no limit);
    and the texts of `stop`, at which an answer ends. With `parse_special`, text in messages that looks like a control
    token is one. `keep` is how an answer goes on when the context is full (see `Limits`); None: it ends. Each answer
    follows `constraint`, if there is one, and may call the tools of `use`. Raises InputError if the constraint or a
    tool's schema cannot be honoured.

    `messages` has everything that was said, as {"role": ..., "content": ...}. When the context is too full for another
    answer, the model no longer sees the oldest messages: `forgotten` is their number.
    """

    def __init__(
        self,
        model: "Model",
        template: "ChatTemplate",
        *,
        sampler: Sampler,
        system: str = "",
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        parse_special: bool = False,
        keep: int | None = None,
        constraint: "Constraint | None" = None,
        use: "ToolUse | None" = None,
    ) -> None:
        self.model = model
        self.template = template
        self.sampler = sampler
        self.system = system
        self.max_tokens = max_tokens
        self.stop = stop
        self.parse_special = parse_special
        self.keep = keep
        self.constraint = constraint
        if constraint is not None:
            model.grammars.matcher(constraint)  # raises what no answer could honour
        self.use = use
        self.format = None if use is None else _read_format(template)
        if use is not None:
            self._matcher([], use)  # raises what no answer could honour
        self.messages: list[Message] = []
        self.forgotten = 0
        self._dialogue = Dialogue(model)
        self._answer: Answer | None = None

    @property
    def cached(self) -> int:
        """The number of tokens in the cache."""
        return len(self._dialogue.ids)

    def ask(self, text: str) -> "Answer":
        """Adds a message of the user, and returns the answer to it.

        Raises InputError, and adds nothing, if the template refuses the message, or if the context has no room for it
        even without the messages before it.
        """
        self._close_answer()
        return self._begin([*self.messages, {"role": "user", "content": text}])

    def answer_calls(self, results: Sequence[str]) -> "Answer":
        """Adds what the calls of the last answer gave, in their order, and returns the answer to it.

        Raises InputError as `ask` does, and if the last answer has not as many calls.
        """
        self._close_answer()
        calls = self.messages[-1].get("tool_calls") or [] if self.messages else []
        if len(calls) != len(results):
            raise InputError(f"{len(results)} results, but the last answer has {len(calls)} calls")
        given = [
            {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": text}
            for call, text in zip(calls, results, strict=True)
        ]
        return self._begin([*self.messages, *given])

    def regenerate(self) -> "Answer":
        """Answers the last message of the user again. The new answer replaces the old one when it ends."""
        self._close_answer()
        if not (asked := self._asked()):
            raise InputError("there is no message to answer again; send one first")
        return self._begin(asked)

    def clear(self) -> None:
        """Forgets all messages, and returns their pages to the cache. The settings stay as they are."""
        self.replace([])
        self._dialogue.free()

    def replace(self, messages: "Sequence[Message]") -> None:
        """Replaces all messages."""
        self._close_answer()
        self.messages, self.forgotten = list(messages), 0

    def _asked(self) -> "list[Message]":
        """The messages without the answer to the last one of the user; empty if there is no such message."""
        messages = list(self.messages)
        while messages and messages[-1]["role"] != "user":
            messages.pop()
        return messages

    def _close_answer(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _begin(self, messages: "list[Message]") -> "Answer":
        ids, forgotten = self._encode_to_fit(messages)
        newly_forgotten = forgotten - self.forgotten
        self.forgotten = forgotten
        use = _use_after(messages, self.use)
        signs = self.format.marks.by_id if self.format else {}
        generation = Generation(
            self._dialogue,
            ids,
            self.sampler,
            self.max_tokens,
            self.stop,
            keep=self.keep,
            matcher=self._matcher(ids, use),
            signs=signs,
        )
        parser = self.format.parser(ids, use) if self.format and use else None
        self._answer = Answer(self, messages, generation, newly_forgotten, parser)
        return self._answer

    def _matcher(self, ids: list[int], use: "ToolUse | None") -> "Matcher | None":
        """What the answer to a prompt follows."""
        if self.format and use:
            return self.format.matcher(self.model.grammars, ids, use, self.constraint)
        if self.constraint is None:
            return None
        from lltool.engine.calls.reasoning import after_reasoning

        return self.model.grammars.matcher(after_reasoning(self.constraint, ids, self.model.tokenizer))

    def _encode(self, messages: "Sequence[Message]") -> list[int]:
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        shown: list[Message] = [*system, *messages]
        variables: dict[str, Any] = {}
        if self.format and self.use:
            shown, variables = self.format.prepare(shown, self.use)
        return self.template.encode(shown, parse_special=self.parse_special, **variables)

    def _encode_to_fit(self, messages: "list[Message]") -> tuple[list[int], int]:
        """The tokens of the messages that the model is to see, and the number of older ones, which it is not to see.

        An eighth of the context is kept for the answer. Where that is not left, so many messages go that half of the
        context is free: all that stays must be computed anew, as it moves, and this should not happen in every turn.
        """
        context = self.model.context
        ids = self._encode(messages[self.forgotten :])
        room = max(1, min(context // 8, context if self.max_tokens is None else self.max_tokens))
        if len(ids) <= context - room:
            return ids, self.forgotten
        asked = [index for index, message in enumerate(messages) if message["role"] == "user"]
        starts = [index for index in asked if index > self.forgotten] or [self.forgotten]
        found = bisect_left(starts, True, key=lambda start: len(self._encode(messages[start:])) <= context // 2)
        start = starts[min(found, len(starts) - 1)]
        ids = self._encode(messages[start:])
        if len(ids) >= context:
            what = "the message and the system message have" if self.system else "the message has"
            raise InputError(
                f"{what} {len(ids)} tokens and the context {context}; "
                "shorten the message or load the model with a larger context (-c)"
            )
        return ids, start


def _read_format(template: "ChatTemplate") -> "ChatFormat":
    from lltool.engine.calls.chat_format import ChatFormat

    return ChatFormat.read(template)


def _use_after(messages: "Sequence[Message]", use: "ToolUse | None") -> "ToolUse | None":
    """The tools of an answer: after the result of a call, no other call is demanded."""
    if use is None or use.choice != "required" or messages[-1]["role"] != "tool":
        return use
    return replace(use, choice="auto", allowed=None)


@dataclass
class Answer(Iterator[Token]):
    """An answer as it is generated. It enters the conversation when it ends, or is closed before its end.

    If no token was generated, the conversation stays as it was. `newly_forgotten` is the number of messages that
    the model no longer sees, to make room for this answer.
    """

    conversation: Conversation
    messages: "list[Message]"
    generation: Generation
    newly_forgotten: int
    parser: "AnswerParser | None" = field(default=None, repr=False)
    text: str = ""
    reasoning: str = ""
    _is_closed: bool = field(default=False, repr=False)

    @property
    def is_cut_off(self) -> bool:
        """Whether it ended because the context is full."""
        return self.generation.reason == "length" and self.generation.timings.tokens != self.generation.max_tokens

    def __next__(self) -> Token:
        if self._is_closed:
            raise StopIteration
        try:
            token = next(self.generation)
        except BaseException:
            self.close()
            raise
        if self.parser is not None:
            token = Token(token.id, self._parse(self.parser, token.text))
        else:
            self.text += token.text
        if self.generation.reason:
            self.close()
        return token

    @property
    def calls(self) -> "list[Call]":
        """The calls of tools, with a conversation that has tools."""
        return self.parser.calls if self.parser else []

    def _parse(self, parser: "AnswerParser", text: str) -> str:
        """What a piece of text adds for the user: reasoning and content, without the text of calls."""
        found = [parser.push(text), *([parser.flush()] if self.generation.reason else [])]
        shown = ""
        for each in found:
            gap = "\n\n" if each.content and self.reasoning and not self.text else ""
            shown += each.reasoning + gap + each.content
            self.reasoning += each.reasoning
            self.text += each.content
        return shown

    def close(self) -> None:
        """Ends the answer, finished or not; what there is of it is kept."""
        if self._is_closed:
            return
        self._is_closed = True
        self.generation.close()
        if self.generation.timings.tokens:
            message: dict[str, Any] = {"role": "assistant", "content": self.text}
            if self.calls:
                message["tool_calls"] = [call.as_json() for call in self.calls]
            self.conversation.messages = [*self.messages, message]
