"""Signs for the control tokens that an answer's format knows, so that no text can be taken for one."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lltool.engine.calls.answer_format import AnswerFormat, Dialect, TaggedArguments

if TYPE_CHECKING:
    from lltool.engine.text.tokenizer import Tokenizer

_FIRST, _MOST = 0xD800, 2048  # lone surrogates are in no text that a tokenizer decodes


@dataclass(frozen=True)
class Marks:
    """The signs by the texts of the tokens, and by the tokens' ids."""

    by_text: Mapping[str, str] = field(default_factory=dict)
    by_id: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def make(cls, format: AnswerFormat, tokenizer: "Tokenizer") -> "Marks":
        """Signs for the tokens of a vocabulary whose text is in a pattern of the format."""
        by_text: dict[str, str] = {}
        by_id: dict[int, str] = {}
        written = "\n".join(_texts(format))
        for text, id in tokenizer.control_tokens():
            if text in written and len(by_text) < _MOST:
                by_text[text] = by_id[id] = chr(_FIRST + len(by_text))
        return cls(by_text, by_id)

    def put(self, text: str) -> str:
        """A text of a pattern with signs in place of the tokens, the longest first."""
        for token in sorted(self.by_text, key=len, reverse=True):
            text = text.replace(token, self.by_text[token])
        return text

    def show(self, text: str) -> str:
        """A text without signs."""
        return re.sub("[\ud800-\udfff]", "", text) if self.by_id else text


NO_MARKS = Marks()


def _texts(format: AnswerFormat) -> Iterable[str]:
    if format.reasoning:
        yield from (format.reasoning.open, format.reasoning.close)
    yield from (*format.calls, format.section.open, format.section.close, *format.ignored)
    match format.arguments:
        case TaggedArguments() as style:
            yield from (style.open, style.close)
        case Dialect() as style:
            yield from style.quotes
