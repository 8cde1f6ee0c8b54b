"""Texts in files, pipes and arguments: byte order marks, line ends, bytes that are not UTF-8, escapes."""

import os
import threading
from pathlib import Path

import pytest

from lltool.eval.common.text import read_evaluation_text
from lltool.gguf.errors import InputError
from lltool.gguf.text_file import decode_argument, decode_text, read_lines, read_prompt, read_text

MARK = b"\xef\xbb\xbf"


def write(folder: Path, data: bytes) -> Path:
    path = folder / "text.txt"
    path.write_bytes(data)
    return path


def test_a_byte_order_mark_is_dropped_and_line_ends_are_kept_where_text_counts(tmp_path: Path) -> None:
    path = write(tmp_path, MARK + b"a\r\nb\rc\n" + MARK)
    assert read_text(path) == "a\r\nb\rc\n\ufeff"  # within a text, the mark is a character
    assert read_prompt(path) == "a\nb\rc\n\ufeff"
    assert decode_argument("\ufeffa\r\nb", "-p") == "a\nb"


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    assert read_lines(write(tmp_path, '"a\u2028\x85\x0b"\r\nb\n\nc'.encode())) == ['"a\u2028\x85\x0b"', "b", "", "c"]
    assert read_lines(write(tmp_path, b"a\n")) == ["a"]
    assert read_lines(write(tmp_path, b"")) == []


def test_the_note_of_an_evaluation_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, MARK + b"a\r\nb\nc\r\n")
    assert read_evaluation_text(path) == "a\r\nb\nc\r\n"
    assert caplog.messages == [
        f"{path}: 2 lines end in \\r\\n, which is kept; figures are not comparable with those of the text without \\r"
    ]
    caplog.clear()
    assert read_evaluation_text(write(tmp_path, b"a\n")) == "a\n"
    assert not caplog.messages


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"\xe9", "byte 0 is not UTF-8 (0xe9)"),
        (MARK + b"a\xff", "byte 4 is not UTF-8 (0xff)"),
        ("Hi".encode("utf-16"), "byte 0 is not UTF-8 (0xff)"),
    ],
)
def test_bytes_that_are_not_utf8_are_named(tmp_path: Path, data: bytes, place: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(InputError) as raised:
        read_text(path)
    assert str(raised.value) == f"{path}: {place}; convert the text first"
    with pytest.raises(InputError, match=r"^-p: "):
        decode_argument(os.fsdecode(data), "-p")
    with pytest.raises(InputError, match=r"^x: byte"):
        decode_text(data, "x")


def test_a_text_can_come_through_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(MARK + b"text",))
    thread.start()
    assert read_text(path) == "text"
    thread.join()
    with pytest.raises(InputError, match=r"^/dev/zero: a device, wanted a regular file"):
        read_text(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"\n\r\t\'\"\\", "\n\r\t'\"\\"),
        (r"\\n", r"\n"),
        (r"\xe2\x82\xAC", "€"),
        (r"\x4", r"\x4"),
        (r"\q\u20ac\0", r"\q\u20ac\0"),
        ("a\r\nb\\r\\n", "a\nb\r\n"),  # an escape asks for it
        ("end\\", "end\\"),
    ],
)
def test_escapes_are_llama_cpps(text: str, wanted: str) -> None:
    assert decode_argument(text, "-p", escapes=True) == wanted
