"""Patterns of pre-tokenizers, rewritten so that no text makes them backtrack."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from lltool.engine.text import tokenizer_bpe
from lltool.quant.convert.pretokenizers import PRE_TOKENIZERS

CHANGED_PATTERNS = sorted(
    pattern
    for pattern in {pattern for pre in PRE_TOKENIZERS.values() for pattern in pre.patterns}
    if tokenizer_bpe._avoid_backtracking(pattern) != pattern
)


@pytest.mark.parametrize("pattern", CHANGED_PATTERNS)
def test_patterns_without_backtracking_split_alike(pattern: str) -> None:
    splits = [
        pre_tokenizers.Split(Regex(form), "isolated").pre_tokenize_str
        for form in (pattern, tokenizer_bpe._avoid_backtracking(pattern))
    ]

    @settings(deadline=None, max_examples=200)
    @given(text=st.text("aAzZéÉ漢ǅʰ\u0301 \t\n\r\u00a0\u20281!.'s/", max_size=16))
    def check(text: str) -> None:
        assert splits[0](text) == splits[1](text)

    check()


@pytest.mark.parametrize("pattern", CHANGED_PATTERNS)
def test_a_long_run_is_split_in_linear_time(pattern: str) -> None:
    """A million spaces before a letter; `\\s+$` alone would take a million million steps."""
    split = pre_tokenizers.Split(Regex(tokenizer_bpe._avoid_backtracking(pattern)), "isolated")
    cuts_runs = r"\s{512}" in pattern  # of jais-2, into powers of two, and it looks for a line end before each
    spaces, pieces = (100_000, 210) if cuts_runs else (1_000_000, 2)
    assert len(split.pre_tokenize_str(" " * spaces + "x")) <= pieces
