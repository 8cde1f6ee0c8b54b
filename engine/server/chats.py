"""What all endpoints of conversations share: from messages to the jobs that answer them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from lltool.engine.calls.chat_format import NO_TOOLS, ToolUse
from lltool.engine.grammar.constraint import Constraint
from lltool.engine.server.answer import Answer
from lltool.engine.server.exchange import Exchange
from lltool.engine.server.fields import Fields, GenerationFields
from lltool.engine.server.messages import ChatMessage, plain_messages
from lltool.engine.server.served import Scores, Served
from lltool.engine.text.chat import Message

GUIDED = dict.fromkeys(
    ("guided_json", "guided_regex", "guided_choice", "guided_grammar"), "write it in structured_outputs"
)
UNSUPPORTED = {
    **GUIDED,
    "functions": "functions are deprecated; use tools",
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
    use: ToolUse = NO_TOOLS,
    scores: Scores | None = None,
    reasoning: str | None = None,
    constraint: Constraint | None = None,
) -> list[Answer]:
    """Starts the answers to a conversation. `reasoning` "none" leaves think tags in them (default: the server's).

    If the prompt begins with reasoning, the constraint is for what comes after it.
    """
    served = exchange.served
    ids = await served.encode_chat(messages, variables, use)
    format, splits = served.chat_format, (reasoning or served.settings.reasoning_format) != "none"
    matcher = await served.matcher(lambda: format.matcher(served.model.grammars, ids, use, constraint))
    jobs = served.make_jobs([ids], fields, most, scores, matcher=matcher, signs=format.marks.by_id)
    exchange.submit(jobs)
    return [Answer(job, index, format.parser(ids, use, splits=splits)) for index, job in enumerate(jobs)]


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
