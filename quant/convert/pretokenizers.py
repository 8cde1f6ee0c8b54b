"""The pre-tokenizers of `tokenizer.ggml.pre`, which split text before byte-level BPE merges it.

Patterns apply in sequence, each within the pieces of the previous one; unmatched text becomes a piece too. Source: the
pre-type table of llama.cpp's vocabulary code. Those of kimi-k2, tekken and gpt-4o are the projects' own patterns, to
which llama.cpp's come near: it takes letters beyond ASCII as both upper and lower case. Missing are types with special
rules (afmoe, chameleon, superbpe), those that work on raw UTF-8 (gemma4, sarvam-moe, whitespace) and those of embedding
models.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """The regular expressions and defaults of one pre-tokenizer.

    With `ignore_merges`, a piece that is a token in the vocabulary is used directly instead of being merged from bytes.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_SUFFIX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"  # English contractions
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_RUNS = "|".join([*(rf"\s{{{1 << i}}}(?!\S)" for i in range(9, 1, -1)), r"\s{1,2}(?!\S)", r"\s"])  # by powers of two


def _llama3(digits: str, letters: str = r"\p{L}") -> str:
    words = rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+"
    return rf"{words}|{digits}| ?[^\s{letters}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased(upper: str, lower: str, suffix: str, digits: str) -> str:
    """A pattern whose words are upper-case letters followed by lower-case ones, where either part may be missing."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_MARKED = rf"{_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"

# The letters of scripts with upper case, the punctuation and the ideographs, as the DeepSeek vocabularies list them.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_DEEPSEEK_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_DEEPSEEK_CJK = "\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff"


def _kimi() -> str:
    """Words as in `_cased`, but Chinese characters stand alone."""
    upper, lower = (rf"{letters[:-1]}&&[^\p{{Han}}]]" for letters in (_UPPER, _LOWER))
    return r"[\p{Han}]+|" + _cased(upper, lower, _SUFFIX + "?", r"\p{N}{1,3}").replace(r"[\r\n/]*", r"[\r\n]*")


_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

_TYPES: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling modern-bert "
    "roberta-bpe jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code": PreTokenizer((_GPT2,)),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": PreTokenizer((r"\p{N}", _GPT2)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        (_llama3(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True
    ),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizer((_llama3(r"\p{N}{1,3}"),)),
    "glm4 glm5": PreTokenizer((_llama3(r"\p{N}{1,3}"),), ignore_merges=True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2": PreTokenizer(
        (_llama3(r"\p{N}"),)
    ),
    "qwen35": PreTokenizer((_llama3(r"\p{N}", letters=r"\p{L}\p{M}"),)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _llama3(r"\p{N}+")), ignore_merges=True),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _llama3(r"\p{N}"))),
    "tekken": PreTokenizer((_cased(_UPPER, _LOWER, "", r"\p{N}"),), ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((_cased(_UPPER, _LOWER, _SUFFIX + "?", r"\p{N}{1,3}"),)),
    "tiny_aya cohere2moe": PreTokenizer(
        (r"\d{1,3}(?=(?:\d{3})*\b)", _cased(_UPPER, _LOWER, _SUFFIX + "?", r"\p{N}{1,3}"))
    ),
    "granite-embed-multi-97m": PreTokenizer(
        (_cased(_UPPER, _LOWER, _SUFFIX + "?", r"\p{N}{1,3}"),), ignore_merges=True
    ),
    "jais-2": PreTokenizer((_llama3(r"\p{N}{1,3}").removesuffix(_SPACES) + rf"\s*[\r\n]+|{_RUNS}",)),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer(
        (_llama3(r"\p{N}").removesuffix(_SPACES) + r"\s*[\r\n]|\s+(?!\S)|\s+",)
    ),
    "seed-coder": PreTokenizer(
        (rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
    ),
    "exaone-moe": PreTokenizer(
        (
            rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "youtu": PreTokenizer(
        (
            "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
            "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK,
            _cased(_UPPER, _LOWER, _SUFFIX + "?", r"\p{N}"),
        ),
        ignore_merges=True,
    ),
    "kimi-k2": PreTokenizer((_kimi(),), ignore_merges=True),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            rf"\s?[{_DEEPSEEK_PUNCTUATION}]+",
            r"\s+$",
            f"[{_DEEPSEEK_CJK}]+",
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_DEEPSEEK_CJK}]+", r"\p{N}")),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer((r"\p{N}{1,3}", _CJK, rf"{_MARKED}[\r\n]*|{_SPACES}")),
    "spark2_5": PreTokenizer((r"\p{N}{1,3}", _CJK, rf"{_MARKED}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    "poro-chat bloom gpt3-finnish": PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    "viking": PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")),
    "ufakzeka": PreTokenizer((_llama3(r"\p{N}").removeprefix(_SUFFIX + "|"),)),
}

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: type for names, type in _TYPES.items() for name in names.split()}
