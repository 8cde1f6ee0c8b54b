"""Chat templates: the Jinja source in a model file turns a list of messages into one text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lltool.engine.text.control_text import ControlTexts, StandIns, plain_value
from lltool.engine.text.template_process import Limits, TemplateProcess
from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value
from lltool.gguf.reader import GGUFFile

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant" | ..., "content": ...}
TEMPLATE_KEY = "tokenizer.chat_template"


@dataclass(frozen=True)
class ChatTemplate:
    """A template with its tokenizer. It runs in its own process with limits on time, memory and output.

    Every failure of the template is an InputError that names the template and, if known, the line.
    """

    source: str
    tokenizer: Tokenizer
    process: TemplateProcess
    controls: ControlTexts

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Value], tokenizer: Tokenizer, name: str = "chat template") -> Self:
        """Reads the template from metadata. Raises InputError if there is none or it is broken."""
        value = metadata.get(TEMPLATE_KEY)
        if value is None or not isinstance(value.data, str):
            raise InputError(
                f"{name}: {TEMPLATE_KEY} is missing: the file has no chat template; "
                "give one with --chat-template-file or complete the text as it is with --raw"
            )
        return cls.compile(value.data, tokenizer, name)

    @classmethod
    def compile(
        cls, source: str, tokenizer: Tokenizer, name: str = "chat template", *, limits: Limits | None = None
    ) -> Self:
        """Compiles a template; `name` begins every error. Raises InputError naming the line of invalid Jinja."""
        process = TemplateProcess(source, name, limits)
        process.compile()
        return cls(source, tokenizer, process, ControlTexts(tokenizer.control_texts))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        date: str | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as the model was trained to see it.

        With `add_generation_prompt` the text ends where the assistant's answer starts. `date` is the template's date of
        today. Messages and `variables`, such as `tools`, must be JSON values.
        """
        return self.process.render(self._values(messages, add_generation_prompt, variables), date)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        parse_special: bool = False,
        add_generation_prompt: bool = True,
        date: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """The token ids of the rendered conversation, with one begin token if the model wants it.

        Only the template can produce control tokens: text in `messages` or `variables` that looks like one, whole or in
        pieces that the template joins, is encoded as text. This does not cover the names of fields, nor a template that
        writes part of a control token itself (`'<|' ~ role ~ '|>'`). A template that searches a message for a control
        token does not find it. With `parse_special`, control tokens in messages count like those of the template.
        """
        values = self._values(messages, add_generation_prompt, variables)
        if parse_special:
            text, stand_ins = self.process.render(values, date), None
        else:
            given = {name: values[name] for name in ("messages", *variables)}
            stand_ins = StandIns(self.controls, given, self.source)
            text = self.process.render(values | stand_ins.mark(given), date)
        ids = self.tokenizer.encode(
            text, add_special=False, parse_special=True, restore=stand_ins.restore if stand_ins else None
        )
        return self.tokenizer.with_begin(ids)

    def close(self) -> None:
        """Ends the template's process; garbage collection does so too."""
        self.process.close()

    def _values(
        self, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> dict[str, Any]:
        try:
            return {
                "bos_token": self._text(self.tokenizer.bos),
                "eos_token": self._text(self.tokenizer.eos),
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                "messages": plain_value(messages, "messages"),
                **{name: plain_value(value, name) for name, value in variables.items()},
            }
        except RecursionError:
            raise InputError(f"{self.process.name}: the messages are nested too deeply") from None

    def _text(self, id: int | None) -> str:
        return "" if id is None else self.tokenizer.tokens[id]


def read_chat_template(file: GGUFFile, tokenizer: Tokenizer) -> ChatTemplate:
    """Reads the template of an open file. Raises InputError naming the file and the line."""
    return ChatTemplate.from_gguf(file.metadata, tokenizer, f"{file.path}: chat template")
