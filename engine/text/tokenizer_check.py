"""Checks that a tokenizer from a GGUF file splits text as the checkpoint's `tokenizer.json` does."""

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from lltool.engine.text.tokenizer import Tokenizer
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.vocabulary import load_tokenizer
from lltool.quant.convert.vocabulary_added import list_added_tokens
from lltool.quant.convert.vocabulary_sources import steps_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFace

# Texts that pre-tokenizers split differently: cases, digits, contractions, white space, scripts, marks, symbols.
TEXTS = (
    "",
    " ",
    "Hello world",
    " Hello, World! HELLO WORLD",
    "I'm sure they'll say we've 'Re-done it, don't you? IT'S",
    "3 33 333 3333 33333 1,234,567.89 0xFF 1e-9 2²½Ⅷ",
    "a  b   c    d\t\te \t f",
    "\n\n\nline\r\n\r\n  indented\n\t\ttabs\n ",
    "trailing spaces   ",
    "def f(x: int) -> list[int]:\n    return [i**2 for i in range(x) if i != 0]  # squares\n",
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 1 << 4); return 0; }\n',
    '{"key": [1, 2.5, null, true], "path": "C:\\\\dir\\\\file.txt"}',
    "https://example.org/a_b-c?d=e&f=%20#g user.name+tag@example.com",
    "!!! ??? ... --- === *** ### $$$ %%% ((([[[{{{}}}]]])))",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Straße, façade, naïve, Ærøskøbing",
    "Съешь ещё этих мягких французских булок, да выпей чаю",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "我能吞下玻璃而不伤身体。你好，世界！１２３",
    "いろはにほへと ちりぬるを カタカナ",
    "다람쥐 헌 쳇바퀴에 타고파",
    "نص حكيم له سر قاطع وذو شأن عظيم ١٢٣",
    "דג סקרן שט בים מאוכזב",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "👍🏽 🚀 👨‍👩‍👧‍👦 🇨🇭 ✅ ∑∫√∞ ≠ ≤ → €£¥",
    "e\u0301 n\u0303 \u00a0 \u2003 \u200b \u3000 \ufeff",
    "camelCase snake_case SCREAMING_CASE kebab-case HTTPServer2",
)


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
