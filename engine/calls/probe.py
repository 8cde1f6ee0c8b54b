"""The format of a model's answers, found by rendering its chat template with calls of tools that nobody would make.

The idea is that of llama.cpp's automatic parser: what the template writes between and around the known names and values
is the format.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lltool.engine.calls.answer_format import AnswerFormat, JsonArguments, TaggedArguments, Tags
from lltool.engine.calls.families import GENERIC, find_family, find_reasoning
from lltool.gguf.errors import InputError

Render = Callable[..., str]  # (messages, add_generation_prompt=..., tools=...)

_NAMES = ("qqfirstzz", "qqsecondzz")
_KEYS = ("qqkeyonezz", "qqkeytwozz")
_VALUES = ("qqvalueonezz", 90817)
_IDS = ("qqidonezz", "qqidtwozz")  # of nine letters, as Mistral's templates demand
_CONTENT, _REASONING = "Qqcontentzz.", "Qqreasonzz."
_ASK = {"role": "user", "content": "Qqaskzz?"}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "D.",
            "parameters": {
                "type": "object",
                "properties": {
                    _KEYS[0]: {"type": "string", "description": "D."},
                    _KEYS[1]: {"type": "integer", "description": "D."},
                },
                "required": list(_KEYS),
            },
        },
    }
    for name in _NAMES
]


@dataclass(frozen=True)
class TemplateTraits:
    """What a template does with tools. `format` is how the model answers; the rest is how messages must be given."""

    format: AnswerFormat
    has_tools: bool = False  # whether it tells the model about tools
    has_calls: bool = False  # whether it writes the calls of earlier messages
    has_results: bool = False  # whether it takes messages of the role "tool"
    arguments_as_text: bool = False  # whether calls have their arguments as JSON text
    has_system: bool = False  # whether it takes a system message
    has_short_ids: bool = False  # whether ids of calls must have nine letters or digits
    content_is_none: bool = False  # whether a message with calls and no content has None in its place


def probe_template(source: str, render: Render, ends: Sequence[str] = ()) -> TemplateTraits:
    """Finds out by rendering. `ends` are the texts of the tokens that end an answer."""
    family, reasoning = find_family(source), find_reasoning(source)
    shown = _try(render, [_ASK], tools=_TOOLS)
    if shown is None and _try(render, [_ASK]) is None:  # it is broken, or takes too long to be tried again and again
        return TemplateTraits(replace(GENERIC, reasoning=reasoning))
    has_tools = _NAMES[0] in (shown or "")
    found = None if family is None else replace(family, reasoning=family.reasoning or reasoning)
    chosen: _Probe | None = None
    for count, as_text, content in product((2, 1), (False, True), (None, "")):
        probe = _Probe(render, ends, as_text, content, count)
        if probe.is_good and (family or (found := probe.derive(reasoning))):
            chosen = probe
            break
    has_system = _CONTENT in (_try(render, [{"role": "system", "content": _CONTENT}, _ASK]) or "")
    if found is None:  # the template may know tools, but how the model calls them is not known
        return TemplateTraits(replace(GENERIC, reasoning=reasoning), has_system=has_system)
    result = {"role": "tool", "name": _NAMES[0], "tool_call_id": _IDS[0], "content": _CONTENT}
    as_text, content = (chosen.as_text, chosen.content) if chosen else (False, "")
    has_results = chosen is not None and _CONTENT in (_try(render, [_ASK, chosen.message, result], tools=_TOOLS) or "")
    has_short_ids = False
    if chosen:
        calls = [{**call, "id": f"call_{call['id']}"} for call in chosen.calls]
        has_short_ids = _try(render, [_ASK, {**chosen.message, "tool_calls": calls}], tools=_TOOLS) is None
    return TemplateTraits(
        found,
        has_tools=has_tools,
        has_calls=chosen is not None,
        has_results=has_results,
        arguments_as_text=as_text,
        content_is_none=content is None,
        has_system=has_system,
        has_short_ids=has_short_ids,
    )


class _Probe:
    """One way to give a message with calls, and what the template makes of it."""

    def __init__(self, render: Render, ends: Sequence[str], as_text: bool, content: str | None, count: int) -> None:
        self.as_text, self.content, self.count, self.ends = as_text, content, count, ends
        arguments: Any = dict(zip(_KEYS, _VALUES, strict=True))
        self.calls: list[dict[str, Any]] = [
            {
                "id": id,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments) if as_text else arguments},
            }
            for id, name in zip(_IDS, _NAMES, strict=True)
        ][:count]
        message: dict[str, Any] = {"role": "assistant", "content": content, "tool_calls": self.calls}
        self.message = message
        prompt = _try(render, [_ASK], tools=_TOOLS, add_generation_prompt=True) or ""
        before = _try(render, [_ASK], tools=_TOOLS, add_generation_prompt=False) or prompt
        self.whole = _try(render, [_ASK, message], tools=_TOOLS, add_generation_prompt=False) or ""
        with_content = _try(render, [_ASK, {**message, "content": _CONTENT}], tools=_TOOLS, add_generation_prompt=False)
        self.answer = _answer(self.whole, before, prompt)
        self.answer_with_content = _answer(with_content or "", before, prompt)
        plain = {"role": "assistant", "content": _CONTENT}
        without_calls = _try(render, [_ASK, plain], tools=_TOOLS, add_generation_prompt=False) or ""
        self.end = without_calls.rpartition(_CONTENT)[2]
        reasoned = {**message, "content": _CONTENT, "reasoning_content": _REASONING}
        with_reasoning = _try(render, [_ASK, reasoned], tools=_TOOLS, add_generation_prompt=False) or ""
        self.reasoned = _answer(with_reasoning, before, "")

    @property
    def is_good(self) -> bool:
        """Whether all of the calls came out, each argument once and not as a text within JSON."""
        text = self.answer
        wanted = (*_NAMES[: self.count], *_KEYS, _VALUES[0])
        return (
            all(str(each) in text for each in wanted)
            and f'\\"{_KEYS[0]}' not in text
            and "None" not in text
            and f"'{_KEYS[0]}'" not in text
        )

    def derive(self, reasoning: Tags | None) -> AnswerFormat | None:
        """The format, None if what the template writes has no such form."""
        calls = self._cut(self.answer)
        if calls is None:
            return None
        style, before, mid, after, middle = calls
        if self.count == 1:
            opening, close, section, separator = before.lstrip(), self._without_end(after), Tags(), ""
            section_close = ""
        else:
            assert mid is not None
            close, separator, opening = _split(mid, before, after)
            section_open = before[: len(before) - len(opening)]
            section_close = self._without_end(after[len(close) :])
            if (more := self._cut(self.answer_with_content)) and _CONTENT in more[1]:
                shown = more[1].rpartition(_CONTENT)[2]
                tail = opening if shown.endswith(opening) else opening.lstrip()
                if shown.endswith(tail):
                    other = shown[: len(shown) - len(tail)]
                    section_open = min(section_open.lstrip(), other.lstrip(), key=len)
            section = Tags(section_open.strip() and section_open.lstrip(), section_close.rstrip())
        if not section.open:
            section = Tags()
            opening, separator = opening.lstrip(), separator or opening[: len(opening) - len(opening.lstrip())]
        if not (opening.strip() or section.open.strip()):
            return None  # nothing marks a call
        call = f"{opening}$name{middle}{close.rstrip()}"
        is_bare = not section.open and opening.strip() in ('{"name": "', "{", '{"')
        return AnswerFormat(
            name="derived",
            reasoning=self._reasoning(reasoning),
            calls=(call,),
            arguments=style,
            section=section,
            separator=separator,
            is_first=is_bare,
            is_single=self.count == 1,
        )

    def _cut(self, text: str) -> tuple[Any, str, str | None, str, str] | None:
        """The style of the arguments, and the text before, between and after the calls, and from name to arguments."""
        first = text.find(_NAMES[0])
        if first < 0:
            return None
        before = text[:first]
        one = _arguments(text, first + len(_NAMES[0]))
        if one is None:
            return None
        style, middle, end = one
        mid = None
        if self.count == 2:
            second = text.find(_NAMES[1], end)
            two = _arguments(text, second + len(_NAMES[1])) if second >= 0 else None
            if two is None:
                return None
            mid, end = text[end:second], two[2]
        after = text[end:]
        marks = [_with_slots(each) for each in (before, mid or "", after, middle)]
        return style, marks[0], None if mid is None else marks[1], marks[2], marks[3]

    def _without_end(self, text: str) -> str:
        """What follows the calls, without what ends every answer."""
        end = self.end.strip()
        if end and text.rstrip().endswith(end):
            text = text.rstrip()[: -len(end)]
        is_changed = True
        while is_changed:
            is_changed = False
            for token in self.ends:
                if token and text.rstrip().endswith(token):
                    text, is_changed = text.rstrip()[: -len(token)], True
        return text

    def _reasoning(self, known: Tags | None) -> Tags | None:
        if known is not None or _REASONING not in self.reasoned or _CONTENT not in self.reasoned:
            return known
        opening, _, rest = self.reasoned.partition(_REASONING)
        close = rest.partition(_CONTENT)[0].strip()
        tag = re.search(r"(<[^<>]*>|\[[^\[\]]*\])\Z", opening.strip())
        opening = tag[0] if tag else opening.strip().rpartition("\n")[2]
        return Tags(opening, close) if opening and close else None


def _try(render: Render, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str | None:
    try:
        return render(messages, **variables)
    except InputError:
        return None


def _answer(whole: str, before: str, prompt: str) -> str:
    """What the template writes of the assistant's message, without the text that asks for it."""
    starts = []
    for text in (before, prompt):
        start = _common(whole, text)
        if start < len(text) and (tag := re.search(r"[<\[][^<>\[\]]*\Z", whole[:start])):
            start = tag.start()  # `<think>` and `<tool_call>` begin alike
        starts.append(start)
    return whole[max(starts) :]


def _arguments(text: str, start: int) -> tuple[Any, str, int] | None:
    """Arguments after a name: their style, the pattern from the name through them, and where they end."""
    key = text.find(_KEYS[0], start)
    if key < 0:
        return None
    brace = text.rfind("{", start, key)
    if brace >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, brace)
        except ValueError:
            value, end = None, 0
        if value == dict(zip(_KEYS, _VALUES, strict=True)):
            return JsonArguments(), text[start:brace] + "$arguments", end
    return _tagged(text, start, key)


def _tagged(text: str, start: int, key: int) -> tuple[Any, str, int] | None:
    places = [key]
    for each in (_VALUES[0], _KEYS[1], str(_VALUES[1])):
        place = text.find(str(each), places[-1])
        if place < 0:
            return None
        places.append(place)
    first_key, first, second_key, second = places
    head = text[start:first_key]
    to_value = text[first_key + len(_KEYS[0]) : first]
    between = text[first + len(str(_VALUES[0])) : second_key]
    to_second = text[second_key + len(_KEYS[1]) : second]
    after = text[second + len(str(_VALUES[1])) :]
    close, separator, opening = _split(between, head, after)
    if separator or not close or not opening:
        return None
    if to_value != to_second:
        slot = {'"string"': "$type", '"true"': "$is_string"}
        for written, name in slot.items():
            if written in to_value:
                to_value = to_value.replace(written, f'"{name}"')
                break
        else:
            return None
    style = TaggedArguments(f"{opening}$key{to_value}", close)
    end = second + len(str(_VALUES[1])) + len(close)
    return style, head[: len(head) - len(opening)] + "$arguments", end


def _with_slots(text: str) -> str:
    for id in _IDS:
        text = text.replace(id, "$id")
    return text


def _split(mid: str, before: str, after: str) -> tuple[str, str, str]:
    """Cuts the text between two items into what closes one, what stands between, and what opens the next.

    The closing also begins `after`, the opening also ends `before`. Where both overlap, the cut is behind a bracket.
    """
    closing = _common(mid, after)
    opening = _common(mid[::-1], before[::-1])
    low, high = len(mid) - opening, closing
    if low > high:
        return mid[:high], mid[high:low], mid[low:]
    good = [place for place in range(low, high + 1) if re.search(r"[>\]})]\Z", mid[:place]) or place == 0]
    place = good[0] if good else high
    return mid[:place], "", mid[place:]


def _common(first: str, second: str) -> int:
    """The length of the longest common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))
