"""Task files: the questions read from them, and one line for each error in a file."""

import re
import struct
from pathlib import Path

import pytest

from lltool.eval.tasks.formats import Question, read_hellaswag, read_multiple_choice, read_winogrande
from lltool.gguf.errors import InputError
from tests.eval.tasks.multiple_choice_file import write_multiple_choice

HELLASWAG = "Tea: She\n2\na\nb\nc\nd\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "tasks"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_hellaswag(tmp_path: Path) -> None:
    texts = ("Tea: She a", "Tea: She b", "Tea: She c", "Tea: She d")
    expected = [Question(0, texts, frozenset([2])), Question(1, texts, frozenset([2]))]
    assert read_hellaswag(write(tmp_path, HELLASWAG * 2)) == expected


def test_winogrande_with_and_without_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, 'x,Ann met Bea as _ left.,Ann,Bea,2\n7,"Well, _ did, so.",A B,"C, D",1')
    assert read_winogrande(path) == [
        Question(
            0, ("Ann met Bea as Ann left.", "Ann met Bea as Bea left."), frozenset([1]),
            ("Ann met Bea as Ann", "Ann met Bea as Bea"),
        ),
        Question(1, ("Well, A B did, so.", 'Well, "C, D" did, so.'), frozenset([0]), ("Well, A B", 'Well, "C, D"')),
    ]  # fmt: skip


def test_multiple_choice(tmp_path: Path) -> None:
    path = write_multiple_choice(tmp_path / "tasks", [("Is it?", ["yes", "nö"], 1), ("Why", ["a", "b", "c"], 0)])
    assert read_multiple_choice(path) == [
        Question(0, ("Is it? yes", "Is it? nö"), frozenset([1])),
        Question(1, ("Why a", "Why b", "Why c"), frozenset([0])),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no tasks"),
        ("\n", "no tasks"),
        (HELLASWAG + "more\n", "7 lines, wanted six for each task"),
        (HELLASWAG.replace("2", "4"), "line 2: '4', wanted the right ending's number, 0 to 3"),
        (HELLASWAG + HELLASWAG.replace("2", "b"), "line 8: 'b', wanted"),
        (b"\xff\n" * 6, "byte 0 is not UTF-8"),
    ],
)
def test_malformed_hellaswag(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"tasks.*{message}"):
        read_hellaswag(write(tmp_path, content))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0,A _ b,c,d", "line 2: '0,A _ b,c,d', wanted index,sentence,choice,choice,1 or 2"),
        ('0,"A _ b,c,d,1', "wanted index"),
        ("0,A b,c,d,1", "line 2: no _ in 'A b'"),
        ("0,A _ b,c,d,3", "line 2: '3', wanted the right choice, 1 or 2"),
        ("0,A _ b,c,d,", "line 2: '', wanted the right choice"),
    ],
)
def test_malformed_winogrande(tmp_path: Path, line: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bad line is skipped as by llama-perplexity, with a warning; a file without a good line is refused."""
    path = write(tmp_path, f"0,A _ b,c,d,1\n{line}\n1,A _ b,c,d,2\n")
    assert [(question.number, question.right) for question in read_winogrande(path)] == [(0, {0}), (1, {1})]
    (text,) = caplog.messages
    assert text.startswith(f"{path}, line 2: ")
    assert text.endswith("; the line is skipped")
    assert re.search(message, text)
    with pytest.raises(InputError, match="no tasks; line 2: "):
        read_winogrande(write(tmp_path, f"\n{line}\n"))


def test_task_files_that_llama_perplexity_reads(tmp_path: Path) -> None:
    """An empty last line, \\r\\n, a byte order mark, text after a number, and a last line without a line end."""
    texts = ("Tea: She a", "Tea: She b", "Tea: She c", "Tea: She d")
    expected = [Question(0, texts, frozenset([2]))]
    windows = HELLASWAG.replace("\n", "\r\n")
    forms = (HELLASWAG[:-1], HELLASWAG + "\n", windows, windows + "\r\n", "\ufeff" + HELLASWAG)
    for form in (*forms, HELLASWAG.replace("2", " 2.0 "), HELLASWAG.replace("2", "+2x")):
        assert read_hellaswag(write(tmp_path, form)) == expected
    line = "7,A _ b,c,d,2"
    expected = read_winogrande(write(tmp_path, line))
    assert [question.texts for question in expected] == [("A c b", "A d b")]
    for form in (line + "\r\n", "\ufeff" + line, f"{line}\n\n", f"\n{line}", f"{line} \n", f"{line},more\n"):
        assert read_winogrande(write(tmp_path, form)) == expected


def test_a_device_is_no_task_file() -> None:
    for read in (read_hellaswag, read_winogrande, read_multiple_choice):
        with pytest.raises(InputError, match=r"^/dev/zero: a device, wanted a regular file"):
            read(Path("/dev/zero"))


def _broken(change: str) -> bytes:
    question, answer = struct.pack("<I3s", 3, b"Is?"), struct.pack("<I1s", 1, b"a")
    task = question + struct.pack("<I", 1) + answer + struct.pack("<iI", 1, 0)
    match change:
        case "empty":
            return b""
        case "none":
            return struct.pack("<I", 0)
        case "count":
            return struct.pack("<I", 1 << 31)
        case "label":
            task = task[:-8] + struct.pack("<iI", 0, 0)
        case "answers":
            task = question + struct.pack("<I", 101)
        case "cut":
            task = task[:-6]
        case "question":
            task = struct.pack("<I", 0) + task[7:]
        case "utf-8":
            task = task.replace(b"Is?", b"I\xff?")
        case "place":
            return struct.pack("<II", 1, 1 << 30) + task
    return struct.pack("<II", 1, 8) + task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("empty", "ends at byte 0 in the number of tasks"),
        ("none", "no tasks"),
        ("count", "2147483648 tasks announced, but the file has 4 bytes"),
        ("label", r"task 0 at byte 8: no right answer among labels \[0\]"),
        ("answers", "task 0 has 101 answers, wanted at most 100"),
        ("cut", "ends at byte 26 in task 0's labels, which takes 4 from byte 24; is the file cut off"),
        ("question", "task 0 at byte 8: an empty question or answer"),
        ("utf-8", "byte 13 in task 0's question is not UTF-8"),
        ("place", "ends at byte 32 in task 0's question, which takes 4 from byte 1073741824"),
    ],
)
def test_malformed_multiple_choice(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_multiple_choice(write(tmp_path, _broken(change)))
