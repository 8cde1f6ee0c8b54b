"""Whether a tokenizer read from a GGUF file splits text as the checkpoint's `tokenizer.json` does."""

import unicodedata
from pathlib import Path

from lltool.engine.tokenizer import Tokenizer

# What pre-tokenizers differ in: cases, digits, contractions, runs of white space, scripts, marks, symbols.
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


def compare_tokenizers(tokenizer: Tokenizer, tokenizer_json_path: str | Path) -> str | None:
    """None when both give the same ids for every text of a corpus, else a message with the first difference.

    Texts are composed first where tokenizer.json does that (NFC): GGUF has no key for it.
    """
    from tokenizers import Tokenizer as HuggingFace
    from tokenizers import normalizers

    other = HuggingFace.from_file(str(tokenizer_json_path))
    composes = isinstance(other.normalizer, normalizers.NFC)
    for text in TEXTS:
        if composes:
            text = unicodedata.normalize("NFC", text)
        ids = tokenizer.encode(text, add_special=False)
        wanted = other.encode(text, add_special_tokens=False).ids
        if ids != wanted:
            return f"{tokenizer_json_path}: {text!r} gives {wanted}, the converted tokenizer gives {ids}"
    return None
