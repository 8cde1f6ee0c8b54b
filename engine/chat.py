"""Chat templates: the Jinja source in a model file makes one text of a list of messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, Self

from lltool.engine.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant" | ..., "content": ...}
TEMPLATE_KEY = "tokenizer.chat_template"


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template and the tokenizer whose tokens it names."""

    template: "Template"
    tokenizer: Tokenizer

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Value], tokenizer: Tokenizer) -> Self:
        """Raises InputError when the file has no template or a broken one."""
        value = metadata.get(TEMPLATE_KEY)
        if value is None or not isinstance(value.data, str):
            raise InputError(
                f"{TEMPLATE_KEY} is missing: the file has no chat template; "
                "give one with --chat-template-file or complete the text as it is with --raw"
            )
        return cls.compile(value.data, tokenizer)

    @classmethod
    def compile(cls, source: str, tokenizer: Tokenizer) -> Self:
        """Raises InputError naming the line for a template that is not valid Jinja."""
        from jinja2 import TemplateSyntaxError

        try:
            template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise InputError(f"chat template, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise InputError("chat template: its expressions are nested too deeply") from None
        return cls(template, tokenizer)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The conversation as the model was trained to see it.

        `add_generation_prompt` ends it where the assistant's answer starts. Raises InputError naming the template's
        line when it fails or refuses the messages.
        """
        from jinja2 import TemplateError

        values = {
            "bos_token": self._text(self.tokenizer.bos),
            "eos_token": self._text(self.tokenizer.eos),
            "tools": None,
            "documents": None,
            **variables,
        }
        try:
            return self.template.render(messages=messages, add_generation_prompt=add_generation_prompt, **values)
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise InputError(f"chat template, line {_failing_line(error)}: {error}") from None

    def encode(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """The token ids of the rendered conversation; a begin token that the template writes is not added again."""
        text = self.render(messages, **variables)
        begin = self._text(self.tokenizer.bos)
        return self.tokenizer.encode(text, add_special=not (begin and text.startswith(begin)), parse_special=True)

    def _text(self, id: int | None) -> str:
        return "" if id is None else self.tokenizer.tokens[id]


def _environment() -> Any:
    """Jinja as transformers sets it up, so that templates written for it give the same text."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is only its content."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _failing_line(error: BaseException) -> int | str:
    """The innermost line of the template on the way to `error`; Jinja rewrites tracebacks to the template's lines."""
    line: int | str = "?"
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
