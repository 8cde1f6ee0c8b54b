"""Reads the task files of llama-perplexity; errors name file and line or byte, and skipped lines give a warning."""

import logging
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import read_bytes
from lltool.gguf.text_file import read_lines

_log = logging.getLogger(__name__)

MOST_ANSWERS = 100  # as in llama-perplexity


@dataclass(frozen=True)
class Question:
    """Texts of which a model has to find a right one.

    `bases`, which only some tasks have, are the texts up to the choice. `number` is the place in the file, from 0.
    """

    number: int
    texts: tuple[str, ...]
    right: frozenset[int]
    bases: tuple[str, ...] = ()


def read_hellaswag(path: Path) -> list[Question]:
    """Reads six lines a task: context, number of the right ending (0 to 3), four endings; an empty line may follow.

    Raises InputError.
    """
    lines = _lines(path)
    if len(lines) % 6:
        raise InputError(f"{path}: {len(lines)} lines, wanted six for each task: context, number, four endings")
    questions = []
    for start in range(0, len(lines), 6):
        context, right, *endings = lines[start : start + 6]
        number = _leading_number(right)
        if number not in range(4):
            raise InputError(f"{path}, line {start + 2}: {right[:40]!r}, wanted the right ending's number, 0 to 3")
        texts = tuple(f"{context} {ending}" for ending in endings)
        questions.append(Question(start // 6, texts, frozenset([number])))
    return questions


def read_winogrande(path: Path) -> list[Question]:
    """Reads one line a task: index, sentence with a `_`, two choices for it, and 1 or 2.

    The sentence can be in quotes. Other lines, such as a header, are skipped with a warning, as llama-perplexity skips
    them; it also drops the last line of a file given with -f, but not with -bf. Raises InputError for no tasks.
    """
    questions: list[Question] = []
    skipped = []
    for number, line in enumerate(_lines(path), 1):
        fields = _split(line)
        first, blank, rest = fields[1].partition("_") if len(fields) == 5 else ("", "", "")
        right = _leading_number(fields[-1])
        if len(fields) != 5:
            problem = f"{line[:40]!r}, wanted index,sentence,choice,choice,1 or 2"
        elif not blank:
            problem = f"no _ in {fields[1][:40]!r}"
        elif right not in (1, 2):
            problem = f"{fields[-1][:40]!r}, wanted the right choice, 1 or 2"
        else:
            bases = tuple(first + choice for choice in fields[2:4])
            texts = tuple(base + rest for base in bases)
            questions.append(Question(len(questions), texts, frozenset([right - 1]), bases))
            continue
        if line.strip():
            skipped.append(f"line {number}: {problem}")
    if not questions:
        raise InputError(f"{path}: no tasks" + "".join(f"; {text}" for text in skipped[:1]))
    for text in skipped:
        _log.warning("%s, %s; the line is skipped", path, text)
    return questions


def read_multiple_choice(path: Path) -> list[Question]:
    """Reads llama.cpp's binary file: the number of tasks, the place of each, then the tasks. Raises InputError.

    A task is a question and two sets of answers. The first set counts, and one of its answers is right. Numbers have 32
    bits, little endian.
    """
    data = _Bytes(path)
    count = data.number("the number of tasks")
    if not count:
        raise InputError(f"{path}: no tasks")
    if count > (len(data.data) - 4) // 4:
        size = len(data.data)
        raise InputError(f"{path}: {count} tasks announced, but the file has {size} bytes; is it a task file?")
    places = [data.number("a task's place") for _ in range(count)]
    return [_read_task(data, number, place) for number, place in enumerate(places)]


def _read_task(data: "_Bytes", number: int, place: int) -> Question:
    data.place = place
    what = f"task {number}"
    question = data.text(f"{what}'s question")
    answers, labels = data.answers(what)
    data.answers(what)
    if not question or not answers or not all(answers):
        raise InputError(f"{data.path}: {what} at byte {place}: an empty question or answer")
    right = frozenset(index for index, label in enumerate(labels) if label == 1)
    if not right:
        raise InputError(f"{data.path}: {what} at byte {place}: no right answer among labels {labels}, wanted a 1")
    return Question(number, tuple(f"{question} {answer}" for answer in answers), right)


class _Bytes:
    def __init__(self, path: Path) -> None:
        self.path, self.data, self.place = path, read_bytes(path, 4 << 30, or_pipe=True), 0

    def take(self, count: int, what: str) -> bytes:
        found = self.data[self.place : self.place + count]
        if len(found) < count:
            raise InputError(
                f"{self.path}: ends at byte {len(self.data)} in {what}, which takes {count} from byte {self.place}; "
                "is the file cut off?"
            )
        self.place += count
        return found

    def number(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def text(self, what: str) -> str:
        found = self.take(self.number(what), what)
        try:
            return found.decode()
        except UnicodeDecodeError as error:
            start = self.place - len(found) + error.start
            raise InputError(f"{self.path}: byte {start} in {what} is not UTF-8; is it a task file?") from None

    def answers(self, what: str) -> tuple[list[str], list[int]]:
        count = self.number(f"{what}'s number of answers")
        if count > MOST_ANSWERS:
            raise InputError(f"{self.path}: {what} has {count} answers, wanted at most {MOST_ANSWERS}")
        texts = [self.text(f"{what}'s answers") for _ in range(count)]
        return texts, list(struct.unpack(f"<{count}i", self.take(4 * count, f"{what}'s labels")))


def _lines(path: Path) -> list[str]:
    lines = read_lines(path)
    if lines[-1:] == [""]:  # llama-perplexity drops one line end, and the last line needs none
        del lines[-1]
    if not lines:
        raise InputError(f"{path}: no tasks")
    return lines


def _leading_number(text: str) -> int:
    """The whole number at the start of `text`, as C's functions read it; -1 if there is none."""
    found = re.match(r"\s*\+?([0-9]+)", text)
    return int(found[1][:9]) if found else -1


def _split(line: str) -> list[str]:
    """Splits a line at its first four commas outside of quotes; only the sentence loses its quotes, as in llama.cpp."""
    parts: list[str] = []
    start, is_quoted = 0, False
    for place, character in enumerate(line):
        if character == '"':
            is_quoted = not is_quoted
        elif character == "," and not is_quoted and len(parts) < 4:
            parts.append(line[start:place])
            start = place + 1
    parts.append(line[start:])
    if len(parts) == 5 and parts[1].startswith('"'):
        parts[1] = parts[1][1:-1]
    return parts
