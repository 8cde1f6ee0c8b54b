"""Unigram vocabularies ("t5" in GGUF), from a tokenizer.json or a SentencePiece model."""

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import ValueType, array, boolean, u32
from lltool.quant.convert.embedded import plain_tokenizer
from lltool.quant.convert.hard_texts import TEXTS
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import SpacePrefix
from lltool.quant.convert.unigram import SPACE, build_unigram
from lltool.quant.convert.vocabulary_sources import TokenizerSource, steps_of
from lltool.quant.convert.vocabulary_table import MAX_TOKENS, Vocabulary


def read_unigram_vocabulary(source: TokenizerSource, model: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary from the model part of a tokenizer.json. Raises InputError without a token for unknown text."""
    pieces, unknown = model["vocab"], model.get("unk_id")
    if unknown is None:
        raise InputError(f"{source.file}: the Unigram model has no unk_id; wanted a token for unknown characters")
    if len(pieces) > MAX_TOKENS:
        raise InputError(f"{source.file}: {len(pieces)} tokens, wanted at most {MAX_TOKENS}")
    tokens, scores = [text for text, _ in pieces], [float(score) for _, score in pieces]
    vocabulary = Vocabulary("t5", tokens, [int(TokenType.NORMAL)] * len(tokens), scores)
    vocabulary.types[unknown] = TokenType.UNKNOWN
    if model.get("byte_fallback"):
        for id, token in enumerate(tokens):
            if len(token) == 6 and token.startswith("<0x"):
                vocabulary.types[id] = TokenType.BYTE
        vocabulary.notes.append("unknown characters become bytes; engines other than lltool make them unknown tokens")
    vocabulary.keys["unknown_token_id"] = u32(unknown)
    _set_steps(vocabulary, source, unknown)
    return vocabulary


def _set_steps(vocabulary: Vocabulary, source: TokenizerSource, unknown: int) -> None:
    charsmap, scheme, prepends, merges_spaces, splits_words = b"", None, False, False, False
    others: list[str] = []
    for step in steps_of(source.tokenizer.normalizer) + steps_of(source.tokenizer.pre_tokenizer):
        match step:
            case {"type": "Precompiled", "precompiled_charsmap": text} if not charsmap:
                charsmap = b64decode(text or "")
            case {"type": "WhitespaceSplit"}:
                merges_spaces = splits_words = True
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}}:
                merges_spaces = True
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}:
                pass
            case {"type": "Prepend", "prepend": "▁"}:
                prepends = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"} | {"type": "Strip"}:
                pass
            case {"type": type}:
                others.append(type)
    adds = prepends or scheme in (SpacePrefix.ALWAYS, SpacePrefix.FIRST)
    if not merges_spaces and scheme is not None:
        vocabulary.space_prefix = SpacePrefix(scheme)
    vocabulary.keys |= {"add_space_prefix": boolean(adds), "remove_extra_whitespaces": boolean(merges_spaces)}
    vocabulary.splits_words = splits_words
    if charsmap:
        data = np.frombuffer(charsmap, np.uint8)
        vocabulary.keys["precompiled_charsmap"] = array(ValueType.UINT8, data)
    if others:
        vocabulary.embed(f"texts go through {', '.join(others)}", "leave these steps out")
        return
    types = [type if type == TokenType.BYTE else TokenType.NORMAL for type in vocabulary.types]
    ours = build_unigram(
        vocabulary.tokens,
        vocabulary.scores or (),
        types,
        unknown,
        charsmap=charsmap,
        merges_spaces=merges_spaces,
        splits_words=splits_words,
        adds_space=adds,
    )
    theirs = plain_tokenizer(source.tokenizer.to_str())
    for text in TEXTS:
        if SPACE not in text and ours.encode(text).ids != theirs.encode(text).ids:
            vocabulary.embed(f"texts such as {text!r:.40} are split by rules of their own", "split them otherwise")
            return
