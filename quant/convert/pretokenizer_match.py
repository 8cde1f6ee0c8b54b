"""Identifies the pre-tokenizer of a tokenizer.json as the known one that splits the same texts in the same way."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from lltool.quant.convert.pretokenizers import PRE_TOKENIZERS

# Pre-tokenizers differ in digits, contractions and their case, marks, line ends, scripts and runs of spaces.
PROBES = (
    "Hello world! It's they'll WE'LL don't I'M",
    "1 12 123 1234 1234567 3.14 1,000,000 x2y22z222 ½ ٣٤٥ ௧௨௩",
    "a  b   c\td\t\te \n\n f\n  g\r\n\r\nh   ",
    "   leading and trailing \n",
    "CamelCaseHTTPServer snake_case kebab-case ALLCAPS mixedCASE iPhone ÀÉÎõü ǅungla",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # 100%\n\n\treturn\n",
    "https://example.com/path?x=1&y=2 user@mail.org /usr/bin/ //\n//\n a/\n",
    "你好，世界！今天是2024年。 こんにちは カタカナ 한국어 テキスト 你 好",
    "naïve café e\u0301a\u0300 हिन्दी ภาษาไทย שָׁלוֹם العربية Ελληνικά Русский",
    "🙂🙃 👩‍👩‍👧 ©®™ £100 €5 $3.50 `code` ~tilde~ ^caret |pipe| <tag> +1 = 2",
    "...!!! ???\n ---\n=== ¿qué? «guillemets» “quotes” … — –",
    "'s 'S 't 'hello' O'Neil rock'n'roll \u2019s l\u2019eau",
    "\u00a0nbsp\u2003em\u3000ideographic \u200bzero",
    "<|im_start|>user\n#include <stdio.h>\n-foo _bar (baz) [qux] .dot",
    "م، ن؛ १२३ । ৪৫৬ ۔ 3rd 4.5e-10 0x1F #123abc",
    "o'tis o'sand o'real o'vest o'more o'llama o'dog O'TIS O'REAL!\r\n?\r\n\r\n.\r x",
    "ab\n\n\ncd \n \n ef     \n     gh" + " " * 20 + "ij",
)

_NEARLY_ALL = 0.8  # the share of probes that must agree before an inexact match is suggested


@dataclass(frozen=True)
class Match:
    """A known pre-tokenizer, and the number of probes that it splits in the same way as another one."""

    name: str
    agreeing: int

    @property
    def is_exact(self) -> bool:
        return self.agreeing == len(PROBES)

    @property
    def is_near(self) -> bool:
        """Whether a model can work with it."""
        return self.agreeing >= _NEARLY_ALL * len(PROBES)


def match_pretokenizer(tokenizer: Any, ignore_merges: bool, name: str | None = None) -> Match:
    """The nearest known pre-tokenizer for a `tokenizers` object, or how near the one of this `name` is."""
    found = tokenizer.pre_tokenizer
    wanted = [found.pre_tokenize_str(text) if found else None for text in PROBES]
    scores: dict[str, int] = {}
    for known in [name] if name else _candidates():
        scores[known] = sum(mine == theirs for mine, theirs in zip(_cut_probes(known), wanted, strict=True))
    best = max(scores.values())
    matches = [known for known, score in scores.items() if score == best]
    same = [known for known in matches if PRE_TOKENIZERS[known].ignore_merges == ignore_merges]
    return Match((same or matches)[0], best)


@cache
def _cut_probes(name: str) -> list[Any]:
    """The pieces into which the known pre-tokenizer of that name splits each probe."""
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[name].patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = pre_tokenizers.Sequence([*steps, byte_level])
    return [whole.pre_tokenize_str(text) for text in PROBES]


def _candidates() -> list[str]:
    """One name for each distinct pre-tokenizer; of several, the one that readers of GGUF files have known longest."""
    usual = ("llama-bpe", "qwen2", "gpt-2", "smollm")
    first = sorted(PRE_TOKENIZERS, key=lambda name: usual.index(name) if name in usual else len(usual))
    unique = {(PRE_TOKENIZERS[name].patterns, PRE_TOKENIZERS[name].ignore_merges): name for name in reversed(first)}
    return list(reversed(unique.values()))
