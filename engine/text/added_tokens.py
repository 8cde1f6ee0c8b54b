"""Splits text at added tokens as the `tokenizers` library does: the leftmost match first, the longest if several."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from lltool.quant.convert.tokenizer_keys import AddedTokenFlag, SpacePrefix

_SPACE = "▁"
_JOINERS = "\u200c\u200d"  # count as parts of words


class AddedTokenCutter:
    """Splits texts at added tokens, given by id with their flags.

    `prefix` and `normalize` are applied to the texts between the tokens that are searched for first, and to the texts
    of the tokens that are then searched for in the result. `space_prefix` says which texts get a leading space.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        flags: Mapping[int, AddedTokenFlag],
        *,
        normalize: Callable[[str], str] | None = None,
        prefix: str = "",
        space_prefix: SpacePrefix | None = None,
    ) -> None:
        self._space_prefix = space_prefix
        self._prefix = prefix
        self._normalize = normalize or (lambda text: text)
        late = [id for id, flag in flags.items() if flag & AddedTokenFlag.NORMALIZED]
        early = [id for id in flags if id not in set(late)]
        self._early = _Table({tokens[id]: id for id in early if tokens[id]}, flags)
        self._has_late = bool(late)
        self._late = _Table({self._normalize(prefix + tokens[id]): id for id in late if tokens[id]}, flags)

    def cut(self, text: str, is_wanted: Callable[[int], bool]) -> list[str | int]:
        """The ids of the added tokens that `is_wanted` accepts, and the texts between them with leading spaces."""
        parts: list[str | int] = []
        for part, is_first in self._early.cut(text, is_wanted):
            if isinstance(part, int):
                parts.append(part)
                continue
            # Without tokens to find in it, a text is left as it is: encoding normalizes it.
            normalized = self._normalize(self._prefix + part) if self._has_late else self._prefix + part
            for piece, is_start in self._late.cut(normalized, is_wanted):
                if isinstance(piece, str):
                    piece = self._put_space(piece, is_first and is_start)
                parts.append(piece)
        return parts

    def _put_space(self, text: str, is_first: bool) -> str:
        wants = self._space_prefix == SpacePrefix.ALWAYS or (self._space_prefix == SpacePrefix.FIRST and is_first)
        return " " + text if wants and not text.startswith((" ", _SPACE)) else text


class _Table:
    """Token texts with the flags that say how each one matches."""

    def __init__(self, ids: Mapping[str, int], flags: Mapping[int, AddedTokenFlag]) -> None:
        self._ids = ids
        self._flags = flags
        self._lengths: dict[str, list[int]] = {}  # of the tokens that begin with each character, longest first
        for text in sorted(ids, key=len, reverse=True):
            lengths = self._lengths.setdefault(text[0], [])
            if len(text) not in lengths:
                lengths.append(len(text))
        self._start = re.compile(f"[{''.join(map(re.escape, self._lengths))}]") if ids else None

    def cut(self, text: str, is_wanted: Callable[[int], bool]) -> Iterable[tuple[str | int, bool]]:
        """Yields ids and the texts between them, each with whether it is at the start of `text`."""
        end = 0  # of the part that was yielded
        for start, stop, id in self._matches(text, is_wanted):
            flags = self._flags[id]
            if flags & AddedTokenFlag.SINGLE_WORD and (
                _is_word(text[start - 1 : start]) or _is_word(text[stop : stop + 1])
            ):
                continue
            while flags & AddedTokenFlag.LSTRIP and start > end and _is_space(text[start - 1]):
                start -= 1
            while flags & AddedTokenFlag.RSTRIP and stop < len(text) and _is_space(text[stop]):
                stop += 1
            if end < start:
                yield text[end:start], end == 0
            yield id, start == 0
            end = max(end, stop)
        if end < len(text):
            yield text[end:], end == 0

    def _matches(self, text: str, is_wanted: Callable[[int], bool]) -> Iterable[tuple[int, int, int]]:
        """Yields the start, end and id of each match, without overlaps."""
        position = 0
        while self._start is not None and (found := self._start.search(text, position)):
            position = found.start()
            for length in self._lengths[found.group()]:
                id = self._ids.get(text[position : position + length])
                if id is not None and is_wanted(id):
                    yield position, position + length, id
                    position += length
                    break
            else:
                position += 1


def _is_space(char: str) -> bool:
    return char.isspace() and not "\x1c" <= char <= "\x1f"


def _is_word(char: str) -> bool:
    """Whether a character matches `\\w` as Unicode defines it; "" (the edge of a text) does not."""
    if not char:
        return False
    category = unicodedata.category(char)
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or char in _JOINERS
