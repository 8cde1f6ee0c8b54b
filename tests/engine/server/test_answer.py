"""Reasoning is cut from answers, wherever the pieces of the text end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lltool.engine.server.answer import ReasoningSplitter

CASES = [
    ("Hello there", False, "", "Hello there"),
    ("<think>why\nnot</think>\n\nHello", False, "why\nnot", "Hello"),
    ("  \n<think>\nwhy</think>Hello </think>", False, "why", "Hello </think>"),
    ("why</think>Hello", True, "why", "Hello"),
    ("it goes on", True, "it goes on", ""),
    ("<think>it ends </thi", False, "it ends </thi", ""),
    ("<thin ice", False, "", "<thin ice"),
    ("<thi", False, "", "<thi"),
    ("A <think>tag</think> inside", False, "", "A <think>tag</think> inside"),
    ("<think></think>Hello", False, "", "Hello"),
]


@pytest.mark.parametrize(("text", "is_open", "reasoning", "content"), CASES)
@given(data=st.data())
def test_pieces_make_no_difference(text: str, is_open: bool, reasoning: str, content: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    splitter = ReasoningSplitter(is_open=is_open)
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = [splitter.push(part) for part in parts] + [splitter.flush()]
    assert "".join(part for _, part in found) == content
    assert "".join(part for part, _ in found).rstrip() == reasoning
