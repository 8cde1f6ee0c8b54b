"""WordPiece vocabularies ("bert" in GGUF), from a tokenizer.json or a vocab.txt."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import boolean, u32
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.vocabulary_sources import TokenizerSource, steps_of
from lltool.quant.convert.vocabulary_table import Vocabulary, table
from lltool.quant.convert.wordpiece import CONTINUES, MAX_WORD, WORD_START

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_wordpiece_vocabulary(source: TokenizerSource, model: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary from the model part of a tokenizer.json. Raises InputError without a token for unknown words."""
    vocabulary = Vocabulary("bert", *table(source.file, model["vocab"]))
    unknown = model["vocab"].get(model["unk_token"])
    if unknown is None:
        raise InputError(f"{source.file}: unk_token is {model['unk_token']!r:.80}, which is not in its vocabulary")
    for id, (text, type) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if type == TokenType.NORMAL and id != unknown:
            begins = not text.startswith(CONTINUES)
            vocabulary.tokens[id] = WORD_START + text if begins else text.removeprefix(CONTINUES)
    vocabulary.keys["unknown_token_id"] = u32(unknown)
    _set_normalizer(vocabulary, source.tokenizer)
    if (prefix := model["continuing_subword_prefix"]) != CONTINUES:
        vocabulary.embed(f"tokens that continue a word begin with {prefix!r}, not {CONTINUES}", "join words wrongly")
    if (limit := model["max_input_chars_per_word"]) != MAX_WORD:
        vocabulary.embed(f"words of more than {limit} characters, not {MAX_WORD}, are unknown", "split them")
    if len(set(vocabulary.tokens)) < len(vocabulary.tokens):
        twice = next(t for i, t in enumerate(vocabulary.tokens) if t in vocabulary.tokens[:i])
        vocabulary.embed(f"two tokens have the text {twice!r:.60} in GGUF", "refuse the file")
    return vocabulary


def _set_normalizer(vocabulary: Vocabulary, tokenizer: "Tokenizer") -> None:
    lowercase = strip_accents = True
    match steps_of(tokenizer.normalizer):
        case [{"type": "BertNormalizer", "lowercase": lowercase, **rest}]:
            strip_accents = lowercase if rest.get("strip_accents") is None else rest["strip_accents"]
            if not rest["clean_text"]:
                vocabulary.embed("control characters are kept", "leave them out")
            if not rest["handle_chinese_chars"]:
                vocabulary.embed("Chinese characters do not stand alone", "take each as a word")
        case steps:
            names = ", ".join(step["type"] for step in steps) or "none"
            vocabulary.embed(f"the normalizer is {names}, not BERT's", "normalize texts as BERT does")
    if [step["type"] for step in steps_of(tokenizer.pre_tokenizer)] != ["BertPreTokenizer"]:
        names = ", ".join(step["type"] for step in steps_of(tokenizer.pre_tokenizer)) or "none"
        vocabulary.embed(f"the pre-tokenizer is {names}, not BERT's", "split texts into words as BERT does")
    vocabulary.keys |= {
        "normalizer.lowercase": boolean(lowercase),
        "normalizer.strip_accents": boolean(strip_accents),
    }
