"""What all endpoints of conversations share: from messages to the jobs that answer them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from lltool.engine.server.answer import CLOSE, OPEN, Answer, ReasoningSplitter
from lltool.engine.server.exchange import Exchange
from lltool.engine.server.fields import Fields, GenerationFields
from lltool.engine.server.messages import ChatMessage, plain_messages
from lltool.engine.server.served import Scores, Served
from lltool.engine.text.chat import Message

NO_TOOLS = "this server cannot constrain answers to calls of tools"
NO_GRAMMAR = "this server cannot constrain answers to a grammar"
UNSUPPORTED = {
    "tools": NO_TOOLS,
    "functions": NO_TOOLS,
    "grammar": NO_GRAMMAR,
    "json_schema": NO_GRAMMAR,
    "chat_template": "a request cannot bring a template",
    "audio": "this server writes text only",
}
Tokens = Annotated[int, Field(ge=-1, le=(1 << 63) - 1)]


class TemplateFields(Fields):
    """What a chat template is given."""

    messages: list[ChatMessage]
    chat_template_kwargs: dict[str, Any] | None = None


async def begin_chat(
    exchange: Exchange,
    messages: Sequence[Message],
    variables: Mapping[str, Any],
    fields: GenerationFields,
    most: int | None,
    *,
    scores: Scores | None = None,
    reasoning: str | None = None,
) -> list[Answer]:
    """Starts the answers to a conversation. `reasoning` "none" leaves think tags in them (default: the server's)."""
    served = exchange.served
    ids = await served.encode_chat(messages, variables)
    jobs = served.make_jobs([ids], fields, most, scores)
    exchange.submit(jobs)
    splits = (reasoning or served.settings.reasoning_format) != "none"
    return [Answer(job, index, splitter(served, ids, splits)) for index, job in enumerate(jobs)]


def template_arguments(fields: TemplateFields, served: Served) -> tuple[list[Message], dict[str, Any]]:
    """The messages and the variables for the template of a request. Raises ApiError for names that are its own."""
    variables = dict(fields.chat_template_kwargs or {})
    effort = getattr(fields, "reasoning_effort", None)
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
        if effort == "none":
            variables.setdefault("enable_thinking", False)
    return plain_messages(fields.messages, served.settings.limits), variables


def most_tokens(count: int | None) -> int | None:
    return None if count == -1 else count


def splitter(served: Served, ids: list[int], splits: bool) -> ReasoningSplitter | None:
    """A splitter, if the model's template knows think tags; it begins open if the prompt ends with such a tag."""
    if not splits or CLOSE not in served.template.source:
        return None
    end = served.tokenizer.decode(ids[-16:], special=True).rstrip()
    return ReasoningSplitter(is_open=end.endswith(OPEN))
