"""Lists of texts and files of vectors: what is read and written, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from lltool.eval.common.text_list import read_list
from lltool.eval.common.vector_file import vector_lines, write_npy
from lltool.gguf.errors import InputError


def test_lines_and_json(tmp_path: Path) -> None:
    lines, values = tmp_path / "a.txt", tmp_path / "b.jsonl"
    lines.write_bytes("\ufeffone\r\n\r\nthree {}\n".encode())
    assert [each.text for each in read_list(lines)] == ["one", "", "three {}"]
    values.write_text('"one\\ntwo"\n{"text": "three", "title": "four"}\n')
    assert [each.text for each in read_list(values)] == ["one\ntwo", "three"]
    (tmp_path / "c.jsonl").write_text('{"title": "four"}')
    assert read_list(tmp_path / "c.jsonl", "title")[0].where == f"{tmp_path / 'c.jsonl'}: line 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no texts"),
        ("{", r"line 1: cannot be read as JSON"),
        ('"a"\n7', "line 2: wanted a JSON string, or"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_list(tmp_path / "x.jsonl")


def test_vectors_are_read_back_exactly(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32) ** 9
    write_npy(tmp_path / "v.npy", vectors)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vectors)
    texts = ['a "quote"', "你好", "\n"]
    read = [json.loads(line) for line in vector_lines(texts, vectors, "jsonl")]
    assert [each["text"] for each in read] == texts
    np.testing.assert_array_equal(np.array([each["embedding"] for each in read], np.float32), vectors)
    (whole,) = vector_lines(texts, vectors, "json")
    assert json.loads(whole) == {"texts": texts, "embeddings": [each["embedding"] for each in read]}
    rows = [line.split(",") for line in vector_lines(texts, vectors, "csv")]
    np.testing.assert_array_equal(np.array(rows, np.float64).astype(np.float32), vectors)
