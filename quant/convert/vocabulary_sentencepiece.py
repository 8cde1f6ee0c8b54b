"""SentencePiece BPE vocabularies ("llama" in GGUF), read from a tokenizer.model or from merges with byte fallback."""

import json
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import boolean
from lltool.quant.convert.sentencepiece_model import SentencePieceModel, TokenType
from lltool.quant.convert.tokenizer_keys import SpacePrefix
from lltool.quant.convert.vocabulary_sources import TokenizerSource, steps_of
from lltool.quant.convert.vocabulary_table import Vocabulary, table


def read_from_model(source: TokenizerSource, model: SentencePieceModel) -> Vocabulary:
    """The vocabulary of a tokenizer.model, with the rules for spaces of a tokenizer.json if there is one."""
    vocabulary = Vocabulary("llama", list(model.pieces), list(model.types), list(model.scores))
    if source.describes_text or source.tokenizer.pre_tokenizer is not None:
        _set_spaces(vocabulary, source)
    else:
        vocabulary.keys["add_space_prefix"] = boolean(model.add_space_prefix)
        if model.remove_extra_whitespaces:
            vocabulary.notes.append("the tokenizer drops extra spaces; engines that run GGUF files keep them")
        if model.charsmap:
            vocabulary.notes.append("the tokenizer maps characters first; engines that run GGUF files do not")
    return vocabulary


def read_from_merges(source: TokenizerSource, model: dict[str, Any]) -> Vocabulary:
    """The vocabulary from the model part of a tokenizer.json; scores follow from the order of merges."""
    vocabulary = Vocabulary("llama", *table(source.file, model["vocab"]), scores=[])
    rank: dict[str, int] = {}
    for index, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        rank.setdefault(left + right, index)
    last = len(model["merges"])
    vocabulary.scores = [-float(rank.get(token, last)) for token in vocabulary.tokens]
    for id, token in enumerate(vocabulary.tokens):
        if len(token) == 6 and token.startswith("<0x"):
            vocabulary.types[id] = TokenType.BYTE
    if unknown := model.get("unk_token"):
        if unknown not in model["vocab"]:
            raise InputError(f"{source.file}: unk_token is {unknown!r:.80}, which is not in its vocabulary")
        vocabulary.types[model["vocab"][unknown]] = TokenType.UNKNOWN
    _set_spaces(vocabulary, source)
    return vocabulary


def _set_spaces(vocabulary: Vocabulary, source: TokenizerSource) -> None:
    """Sets how spaces become ▁ and where one is put before the text. Raises InputError for any other step."""
    tokenizer, prefix, is_cut = source.tokenizer, False, False
    for step in steps_of(tokenizer.normalizer) + steps_of(tokenizer.pre_tokenizer):
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": is_cut}:
                vocabulary.space_prefix = SpacePrefix(scheme)
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}:
                pass  # there are no spaces left to split at
            case {"type": type}:
                vocabulary.embed(
                    f"step {type} ({json.dumps(step, ensure_ascii=False):.80}) is not SentencePiece's",
                    "leave it out",
                )
    if prefix and vocabulary.space_prefix is not None:
        vocabulary.embed("both Prepend and Metaspace put a space before texts", "put one")
        vocabulary.space_prefix = None
    if is_cut and (joined := next((token for token in _normal_tokens(vocabulary) if "▁" in token[1:]), None)):
        vocabulary.embed(f"texts are split at spaces, but tokens such as {joined!r:.60} contain some", "use these")
    adds = prefix or vocabulary.space_prefix in (SpacePrefix.ALWAYS, SpacePrefix.FIRST)
    vocabulary.keys["add_space_prefix"] = boolean(adds)
    if adds and not prefix:
        where = "each text between added tokens" if vocabulary.space_prefix == SpacePrefix.ALWAYS else "the whole text"
        vocabulary.notes.append(
            f"a space is put before {where} if there is none yet; readers of GGUF files other than lltool always put "
            "one before each text after an added token"
        )


def _normal_tokens(vocabulary: Vocabulary) -> list[str]:
    pairs = zip(vocabulary.tokens, vocabulary.types, strict=True)
    return [token for token, type in pairs if type == TokenType.NORMAL]
