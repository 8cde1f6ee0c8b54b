"""Gemma 4's vocabulary, read from the keys that llama.cpp's converter writes, gives the ids of the library."""

import json
from pathlib import Path

import pytest

from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, string
from tests.engine.text.test_tokenizer_kinds import check_lines, read
from tests.tiny_tokenizers import TOKENIZERS


def gemma4_keys(folder: Path) -> dict[str, Value]:
    """The keys of a small tokenizer of Gemma's kind, as llama.cpp's converter writes those of Gemma 4."""
    config = TOKENIZERS["gemma"](folder)
    keys = read(folder, 384, **config)[0] | {"tokenizer.ggml.model": string("gemma4")}
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return keys | {"tokenizer.ggml.merges": array(ValueType.STRING, lines)}


def test_gemma4(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as HuggingFace

    tokenizer = Tokenizer.from_gguf(gemma4_keys(tmp_path))
    check_lines(tokenizer, HuggingFace.from_file(str(tmp_path / "tokenizer.json")))
    assert tokenizer.add_bos


@pytest.mark.parametrize("merge", ["nonsense", "a qqqq", " "])
def test_merges_of_gemma4_that_merge_nothing_are_refused(merge: str, tmp_path: Path) -> None:
    keys = gemma4_keys(tmp_path) | {"tokenizer.ggml.merges": array(ValueType.STRING, [merge])}
    with pytest.raises(InputError, match=r"tokenizer\.ggml\.merges: .* does not merge two tokens to a third"):
        Tokenizer.from_gguf(keys)
