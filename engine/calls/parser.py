"""An answer as it is generated, cut into reasoning, content and calls of tools. No text makes it fail.

The text has a sign, a lone surrogate, in place of each control token that the format knows: a token that begins a call
and a text that looks like it are then different. What turns out not to be a call is content.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lltool.engine.calls.answer_format import (
    AnswerFormat,
    Dialect,
    Slot,
    TaggedArguments,
    parts,
)
from lltool.engine.calls.literal import NO, PARTIAL, Literal
from lltool.engine.calls.marks import NO_MARKS, Marks
from lltool.engine.calls.reading import Source, read_dialect, read_json, read_tagged
from lltool.engine.calls.tool import Call, CallDelta, Tool, make_id

_ID = re.compile(r"[\w.\-:]*")
_DIGITS = re.compile(r"\d*")
_TRAILING = re.compile(r"\s*\Z")


@dataclass
class Parsed:
    """What a piece of text gave."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)


@dataclass(frozen=True)
class _Opening:
    literal: Literal
    kind: str  # "reasoning", "ignored" or "call"
    rest: tuple[Literal | Slot, ...] = ()  # what a call has after its opening


class AnswerParser:
    """Cuts an answer that arrives in pieces.

    Without `tools`, no call is looked for. With `is_reasoning`, the text begins within reasoning.
    """

    def __init__(
        self,
        format: AnswerFormat,
        *,
        tools: Sequence[Tool] = (),
        is_reasoning: bool = False,
        marks: Marks = NO_MARKS,
        splits: bool = True,
    ) -> None:
        self.format = format
        self.calls: list[Call] = []
        self.is_reasoning = is_reasoning and splits
        self._tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}
        self._marks = marks
        self._parsed = Parsed()
        self._source = Source()
        self._held = ""  # white space that may come before a call
        self._trims = False  # white space that comes next is dropped
        self._has_content = False
        self._reasoning = format.reasoning if splits else None
        self._starts = self._openings()
        self._running = self._run()
        next(self._running)

    def push(self, text: str) -> Parsed:
        """Adds text; returns what is certain now."""
        self._source.push(text)
        self._advance()
        found, self._parsed = self._parsed, Parsed()
        return found

    def flush(self) -> Parsed:
        """What is held back when the text is over."""
        self._source.is_over = True
        self._advance()
        self._parsed.content += self._marks.show(self._held)
        self._held = ""
        found, self._parsed = self._parsed, Parsed()
        return found

    def _advance(self) -> None:
        try:
            next(self._running)
        except StopIteration:
            return

    def _literal(self, text: str) -> Literal:
        return Literal.make(self._marks.put(text)).without_start()

    def _openings(self) -> list[_Opening]:
        found = []
        if self._reasoning and self._reasoning.open:
            found.append(_Opening(self._literal(self._reasoning.open), "reasoning"))
        found += [_Opening(self._literal(text), "ignored") for text in self.format.ignored]
        if self._tools:
            found += [
                _Opening(self._literal(self.format.section.open + _first_text(call)), "call", self._rest(call))
                for call in self.format.calls
            ]
        return found

    def _rest(self, call: str) -> tuple[Literal | Slot, ...]:
        pieces = list(parts(call))
        if isinstance(pieces[0], str):
            del pieces[0]
        return tuple(Literal.make(self._marks.put(each)) if isinstance(each, str) else each for each in pieces)

    def _run(self) -> Generator[None, None, None]:
        yield
        if self.is_reasoning:
            yield from self._reason()
        elif self._reasoning and not self.format.is_interleaved:
            yield from self._begin()
        yield from self._read_content()

    def _begin(self) -> Generator[None, None, None]:
        """Reads reasoning if the text begins with it."""
        source = self._source
        begun = source.at
        assert self._reasoning
        source.is_kept = True
        yield from source.skip_space()
        is_found = bool(self._reasoning.open) and (yield from source.match(self._literal(self._reasoning.open)))
        source.is_kept = False
        if is_found:
            self._trims = True
            yield from self._reason()
        else:
            source.at = begun

    def _reason(self) -> Generator[None, None, None]:
        assert self._reasoning
        source, close = self._source, self._literal(self._reasoning.close)
        self.is_reasoning = True
        self._held = ""
        while True:
            place, end = close.find(source.text, source.at, is_whole=source.is_over)
            self._add(source.text[source.at : place], is_reasoning=True)
            source.at = place
            if end >= 0:
                source.at = end
                break
            if source.is_over:
                self._parsed.reasoning += self._marks.show(self._held)
                self._held = ""
                return
            yield
        self._held, self._trims, self.is_reasoning = "", True, False

    def _add(self, text: str, *, is_reasoning: bool = False) -> None:
        """Adds text, but holds white space back until something follows."""
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        whole = self._held + text
        match = _TRAILING.search(whole)
        assert match
        certain, self._held = whole[: match.start()], whole[match.start() :]
        if not certain:
            return
        if is_reasoning:
            self._parsed.reasoning += self._marks.show(certain)
        else:
            self._has_content = True
            self._parsed.content += self._marks.show(certain)

    def _read_content(self) -> Generator[None, None, None]:
        source = self._source
        while True:
            opening, place, end = self._find_opening()
            self._add(source.text[source.at : place])
            source.at = place
            if opening is None:
                if source.is_over:
                    return
                yield
                continue
            if opening.kind == "ignored":
                source.at = end
                self._trims = not self._has_content
            elif opening.kind == "reasoning":
                source.at = end
                self._trims = True
                yield from self._reason()
            else:
                source.is_kept = True
                is_call = yield from self._read_calls(place, end)
                source.is_kept = False
                if not is_call:
                    self._add(source.text[place : place + 1])
                    source.at = place + 1

    def _find_opening(self) -> tuple[_Opening | None, int, int]:
        """The first opening, where it begins and ends; without one, the place up to which the text is certain."""
        source = self._source
        text, size = source.text, len(source.text)
        usable = [
            each
            for each in self._starts
            if not (each.kind == "reasoning" and not self.format.is_interleaved)
            and not (each.kind == "call" and self.format.is_first and (self._has_content or self.calls))
        ]
        firsts = {each.literal.first for each in usable}
        for place in range(source.at, size):
            if text[place] not in firsts:
                continue
            if self.format.is_first and text[source.at : place].strip():
                usable = [each for each in usable if each.kind != "call"]
            ends = [(each.literal.match(text, place, is_whole=source.is_over), each) for each in usable]
            if any(end == PARTIAL for end, _ in ends):
                return None, place, NO
            end, opening = max(ends, key=lambda pair: pair[0], default=(NO, None))
            if opening is not None and end >= 0:
                return opening, place, end
        return None, size, NO

    def _read_calls(self, place: int, end: int) -> Generator[None, None, bool]:
        """Calls from `place` on, the opening of the first of which ends at `end`; False if there is none."""
        source = self._source
        section, separator = self.format.section, Literal.make(self.format.separator.strip() or "\0")
        openings = [each for each in self._starts if each.kind == "call"]
        alternatives = [each for each in openings if each.literal.match(source.text, place, is_whole=True) == end]
        if not (yield from self._read_one(end, alternatives)):
            return False
        if not section.open:
            self._trims = True
            return True
        heads = [
            (self._literal(_first_text(call)) if _first_text(call) else None, opening)
            for call, opening in zip(self.format.calls, openings, strict=True)
        ]
        close = self._literal(section.close)
        while True:
            yield from source.skip_space()
            yield from source.match(separator)
            yield from source.skip_space()
            source.is_kept = True
            for head, opening in heads:
                begun = source.at
                if (head is None or (yield from source.match(head))) and (
                    yield from self._read_one(source.at, [opening])
                ):
                    break
                source.at = begun
            else:
                source.is_kept = False
                if section.close:
                    yield from source.match(close)
                self._trims = True
                return True

    def _read_one(self, start: int, alternatives: Sequence[_Opening]) -> Generator[None, None, bool]:
        """A call whose opening ends at `start`; False, with nothing given of it, if it is none."""
        source = self._source
        for each in alternatives:
            source.at = start
            if (yield from self._read_call(each.rest)):
                return True
        return False

    def _read_call(self, rest: Sequence[Literal | Slot]) -> Generator[None, None, bool]:
        source = self._source
        found: dict[str, str] = {}
        begun: int | None = None
        for number, each in enumerate(rest):
            if isinstance(each, Literal):
                if not (yield from source.match(each)):
                    return begun is not None
            elif each.name == "name":
                name = yield from self._read_name()
                if not name:
                    return False
                found["name"] = name
            elif each.name == "arguments":
                begun = yield from self._read_arguments(found, rest[number + 1 :])
                if begun is None:
                    return False
                if begun < 0:
                    return True
            else:
                found[each.name] = yield from source.span(_DIGITS if each.name == "index" else _ID)
                if not found[each.name]:
                    return begun is not None
        return begun is not None

    def _read_name(self) -> Generator[None, None, str]:
        source = self._source
        names = self._tools
        longest = max(map(len, names), default=0)
        while True:
            left = source.text[source.at : source.at + longest + 1]
            found = max((name for name in names if left.startswith(name)), key=len, default="")
            could_be = any(name.startswith(left) and len(name) >= len(left) and name != found for name in names)
            if not could_be or source.is_over:
                source.at += len(found)
                return found
            yield

    def _read_arguments(
        self, found: Mapping[str, str], rest: Sequence[Literal | Slot]
    ) -> Generator[None, None, int | None]:
        """Arguments; None if they do not begin, -1 if they broke off, else 0. With the first, the call is announced."""
        source, style = self._source, self.format.arguments
        tool = self._tools[found["name"]]
        if isinstance(style, TaggedArguments):
            reading = read_tagged(source, self._marked(style), tool.parameters)
        elif isinstance(style, Dialect):
            end = rest[0].first if rest and isinstance(rest[0], Literal) else ""
            reading = read_dialect(source, self._marked_dialect(style), end)
        else:
            reading = read_json(source)
        call: Call | None = None
        is_over, is_whole = False, False
        while not is_over:
            try:
                next(reading)
            except StopIteration as stopped:
                is_over, is_whole = True, bool(stopped.value)
            if (new := source.take()) or call:
                if call is None:
                    call = self._announce(found)
                if new:
                    call.arguments += new
                    self._parsed.calls.append(CallDelta(len(self.calls) - 1, new))
            if not is_over:
                yield
        return None if call is None else 0 if is_whole else -1

    def _announce(self, found: Mapping[str, str]) -> Call:
        self._held, self._source.is_kept = "", False
        number = len(self.calls)
        id = found.get("id") or make_id()
        if self.format.id:
            id = self.format.id.replace("$name", found["name"]).replace("$index", str(number))
        call = Call(id, found["name"])
        self.calls.append(call)
        self._parsed.calls.append(CallDelta(number, "", id, call.name))
        return call

    def _marked(self, style: TaggedArguments) -> TaggedArguments:
        return replace(style, open=self._marks.put(style.open), close=self._marks.put(style.close))

    def _marked_dialect(self, style: Dialect) -> Dialect:
        return replace(style, quotes=tuple(map(self._marks.put, style.quotes)))


def _first_text(call: str) -> str:
    first = parts(call)[0]
    return first if isinstance(first, str) else ""
