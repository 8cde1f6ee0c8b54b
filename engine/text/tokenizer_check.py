"""Checks that a tokenizer from a GGUF file splits text as the checkpoint's `tokenizer.json` does."""

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from lltool.engine.text.tokenizer import Tokenizer
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.hard_texts import TEXTS
from lltool.quant.convert.vocabulary import load_tokenizer
from lltool.quant.convert.vocabulary_added import list_added_tokens
from lltool.quant.convert.vocabulary_sources import steps_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFace

# The surroundings that an added token can have in a text.
_AROUND = ("{0}", "a{0}b", "a {0} b", "  {0}\n\n b", "{0}{0} {0}", "\n{0}.", "it's{0} {1}x{1}")
_MOST_ADDED = 24  # added tokens that are tried: those with flags, the first and the last ones


def compare_tokenizers(tokenizer: Tokenizer, tokenizer_json_path: str | Path) -> str | None:
    """None if both tokenizers give the same ids for every test text, else a message with the first difference.

    The other tokenizer is read from the checkpoint's folder with all its files, or from a folder with only a
    tokenizer.json. Some texts contain the added tokens. If tokenizer.json composes text (NFC), the texts are composed
    first, because GGUF has no key for that.
    """
    path = Path(tokenizer_json_path)
    other = load_tokenizer(path.parent, read_json(path.parent / "config.json", missing={}))
    if other is None:
        return None
    composes = any(step["type"] == "NFC" for step in steps_of(other.normalizer))
    for text in (*TEXTS, *_texts_around(other, tokenizer.size)):
        if composes:
            text = unicodedata.normalize("NFC", text)
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        wanted = other.encode(text, add_special_tokens=False).ids
        if ids != wanted:
            return f"{path}: {text!r} gives {wanted}, the converted tokenizer gives {ids}"
    return None


def _texts_around(tokenizer: "HuggingFace", size: int) -> list[str]:
    """Texts that contain the added tokens with ids below `size`."""
    rows = [(id, text, flags) for id, text, _, flags in list_added_tokens(tokenizer) if id < size]
    rows.sort(key=lambda row: not row[2])
    half = _MOST_ADDED // 2
    tokens = [text for _, text, _ in (rows if len(rows) <= _MOST_ADDED else rows[:half] + rows[-half:])]
    return [form.format(text, tokens[index - 1]) for index, text in enumerate(tokens) for form in _AROUND]
