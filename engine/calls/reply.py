"""Answers with calls of tools, for one user: from messages to what was said and called."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lltool.engine.calls.chat_format import ChatFormat, ToolUse
from lltool.engine.calls.parser import Parsed
from lltool.engine.calls.tool import Call
from lltool.engine.generate import Generation, Token, generate
from lltool.engine.grammar.constraint import Constraint
from lltool.engine.sampling import Sampler

if TYPE_CHECKING:
    from lltool.engine.model import Model
    from lltool.engine.text.chat import ChatTemplate, Message


@dataclass
class Reply(Iterator[Parsed]):
    """An answer as it is generated: an iterator over what each token adds. What there is so far is in its fields.

    `content` is what the user reads, `reasoning` what the model wrote before, `calls` the tools that it calls.
    """

    generation: Generation = field(repr=False)
    format: ChatFormat = field(repr=False)
    use: ToolUse = field(repr=False)
    prompt: Sequence[int] = field(repr=False)
    content: str = ""
    reasoning: str = ""
    tokens: list[Token] = field(default_factory=list, repr=False)
    _is_over: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        self._parser = self.format.parser(self.prompt, self.use)

    @property
    def calls(self) -> list[Call]:
        return self._parser.calls

    @property
    def reason(self) -> str:
        """Why it ended: "tool_calls", "stop" or "length"; "" before."""
        reason = self.generation.reason
        return "tool_calls" if reason == "stop" and self.calls else reason

    @property
    def message(self) -> "Message":
        """The answer as a message of the conversation."""
        found: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            found["reasoning_content"] = self.reasoning
        if self.calls:
            found["tool_calls"] = [call.as_json() for call in self.calls]
        return found

    def __next__(self) -> Parsed:
        if self._is_over:
            raise StopIteration
        token = next(self.generation, None)
        if token is not None:
            self.tokens.append(token)
        self._is_over = token is None
        parsed = self._parser.flush() if token is None else self._parser.push(token.text)
        self.content += parsed.content
        self.reasoning += parsed.reasoning
        return parsed


def reply(
    model: "Model",
    template: "ChatTemplate",
    messages: "Sequence[Message]",
    use: ToolUse,
    *,
    sampler: Sampler,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    parse_special: bool = False,
    constraint: Constraint | None = None,
) -> Reply:
    """Begins an answer that may call tools. What is no call follows the constraint, which is then a JSON schema.

    Raises InputError as the template does, for a tool whose schema cannot be enforced, and without llguidance.
    """
    format = ChatFormat.read(template)
    prepared, variables = format.prepare(messages, use)
    ids = template.encode(prepared, parse_special=parse_special, **variables)
    matcher = format.matcher(model.grammars, ids, use, constraint)
    signs = format.marks.by_id
    generation = generate(model, ids, sampler=sampler, max_tokens=max_tokens, stop=stop, matcher=matcher, signs=signs)
    return Reply(generation, format, use, ids)
