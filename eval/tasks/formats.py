"""The files of llama-perplexity's tasks. Readers raise InputError naming file and line or byte, and skip nothing."""

import struct
from dataclasses import dataclass
from pathlib import Path

from lltool.eval.text import read_text
from lltool.gguf.errors import InputError

MOST_ANSWERS = 100  # as in llama-perplexity


@dataclass(frozen=True)
class Question:
    """Texts of which a model is to find a right one; `bases`, where scoring needs them, are their ends' beginnings.

    `number` is the place in the file, from 0.
    """

    number: int
    texts: tuple[str, ...]
    right: frozenset[int]
    bases: tuple[str, ...] = ()


def read_hellaswag(path: Path) -> list[Question]:
    """Six lines a task: context, number of the right ending (0 to 3), four endings."""
    lines = _lines(path)
    if len(lines) % 6:
        raise InputError(f"{path}: {len(lines)} lines, wanted six for each task: context, number, four endings")
    questions = []
    for start in range(0, len(lines), 6):
        context, right, *endings = lines[start : start + 6]
        if right.strip() not in ("0", "1", "2", "3"):
            raise InputError(f"{path}, line {start + 2}: {right[:40]!r}, wanted the right ending's number, 0 to 3")
        texts = tuple(f"{context} {ending}" for ending in endings)
        questions.append(Question(start // 6, texts, frozenset([int(right)])))
    return questions


def read_winogrande(path: Path) -> list[Question]:
    """One line a task: index, sentence with a `_`, two choices for it, and 1 or 2.

    The sentence can be in quotes. llama-perplexity takes the file without its last line when it is given with -f, and
    whole with -bf.
    """
    questions = []
    for number, line in enumerate(_lines(path)):
        where = f"{path}, line {number + 1}"
        fields = _split(line)
        if len(fields) != 5:
            raise InputError(f"{where}: {line[:40]!r}, wanted index,sentence,choice,choice,1 or 2")
        _, sentence, *choices, right = fields
        first, blank, rest = sentence.partition("_")
        if not blank:
            raise InputError(f"{where}: no _ in {sentence[:40]!r}")
        if right.strip() not in ("1", "2"):
            raise InputError(f"{where}: {right[:40]!r}, wanted the right choice, 1 or 2")
        bases = tuple(first + choice for choice in choices)
        texts = tuple(base + rest for base in bases)
        questions.append(Question(number, texts, frozenset([int(right) - 1]), bases))
    return questions


def read_multiple_choice(path: Path) -> list[Question]:
    """llama.cpp's binary file: the number of tasks, the place of each, and tasks of a question and two sets of answers.

    Numbers are 32 bits, little endian; of the answers the first set counts, in which one is right.
    """
    data = _Bytes(path)
    count = data.number("the number of tasks")
    if not count:
        raise InputError(f"{path}: no tasks")
    if count > (len(data.data) - 4) // 4:
        raise InputError(f"{path}: {count} tasks announced, the file has {len(data.data)} bytes; is it a task file?")
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
        self.path, self.data, self.place = path, path.read_bytes(), 0

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
    text = read_text(path).removesuffix("\n")
    if not text:
        raise InputError(f"{path}: no tasks")
    return text.split("\n")


def _split(line: str) -> list[str]:
    """The parts at the first four commas outside of quotes; only the sentence loses its quotes, as in llama.cpp."""
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
