"""WordPiece ("bert" in GGUF files): words are split into the longest tokens from the left; unknown ones are one token.

In GGUF files a token that begins a word has ▁ before its text, and one that continues a word has nothing, where
vocab.txt has nothing and `##`. Source: llama.cpp's converter and vocabulary code. It has no limit for the length of
words; here, as in BERT, words of more than 100 characters are unknown.
"""

from lltool.engine.text.vocabulary_keys import TokenizerKind, VocabularyKeys, encoder_of, is_text
from lltool.gguf.errors import InputError
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.wordpiece import CONTINUES, WORD_START, build_wordpiece

_WHOLE = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
_NO_SPACE_BEFORE = (" .", " ?", " !", " ,")  # as in the WordPiece decoder of `tokenizers`


def read_wordpiece(keys: VocabularyKeys) -> TokenizerKind:
    """Raises InputError if there is no token for unknown words."""
    unknown = keys.token("unknown", default=100)
    if unknown is None or not is_text(keys.tokens[unknown]):
        raise InputError("tokenizer.ggml.unknown_token_id: missing; WordPiece needs a token for unknown words")
    vocabulary = {
        text if type in _WHOLE else text[1:] if text.startswith(WORD_START) else CONTINUES + text: id
        for id, (text, type) in enumerate(zip(keys.mergeable, keys.types.tolist(), strict=True))
        if is_text(text)
    }
    name = keys.tokens[unknown]
    lowercase = keys.flag("normalizer.lowercase", True)
    tokenizer = build_wordpiece(
        vocabulary | {name: unknown},
        name,
        lowercase=lowercase,
        strip_accents=keys.flag("normalizer.strip_accents", lowercase),
    )
    normalizer = tokenizer.normalizer
    return TokenizerKind(
        encoder_of(tokenizer),
        bytes_of_token,
        bos=101,
        sep=102,
        add_bos=True,
        add_sep=True,
        drops_space=True,
        normalize=normalizer.normalize_str if normalizer else None,
        is_lossless=False,
    )


def bytes_of_token(text: str, type: int) -> bytes:
    """The bytes of a token in running text: one that begins a word begins with a space, unless it is punctuation."""
    shown = " " + text[1:] if text.startswith(WORD_START) else text
    return (shown[1:] if shown in _NO_SPACE_BEFORE else shown).encode("utf-8", "surrogateescape")
