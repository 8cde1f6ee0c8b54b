"""The token table of a GGUF tokenizer: texts, types and scores by id."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, string
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import (
    AddedTokenFlag,
    SpacePrefix,
    describe_added_tokens,
    describe_end_ids,
    describe_space_prefix,
    describe_splits_words,
)

_ADDED_SCORE = -1000.0  # for tokens added to a SentencePiece model
_UNUSED_SCORE = -10000.0  # for tokens that only pad the table
MAX_TOKENS = 1 << 22
"""The limit for token ids; no known vocabulary comes near it."""


@dataclass
class Vocabulary:
    """Tokens by id, with GGUF `keys` that describe how text becomes tokens; `notes` are for the user.

    `added` holds the tokens that are matched whole in a text before merging, `end_ids` all that end generation.
    `embedded` says what the keys cannot express, and what other programs do instead.
    """

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    keys: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    added: dict[int, AddedTokenFlag] = field(default_factory=dict)
    end_ids: list[int] = field(default_factory=list)
    space_prefix: SpacePrefix | None = None
    splits_words: bool = False
    embedded: list[tuple[str, str]] = field(default_factory=list)

    def embed(self, why: str, others: str) -> None:
        """Has the whole tokenizer.json stored, which alone says `why`; other programs do what `others` says."""
        self.embedded.append((why, others))

    def put(self, id: int, token: str, special: bool, flags: AddedTokenFlag = AddedTokenFlag.NONE) -> None:
        """Sets an added token; the table is extended as needed."""
        self.fill(id + 1)
        is_in_model = self.types[id] == TokenType.NORMAL
        self.added[id] = flags | (AddedTokenFlag.IN_MODEL if is_in_model else AddedTokenFlag.NONE)
        if self.types[id] == TokenType.UNKNOWN:
            return
        self.types[id] = TokenType.CONTROL if special else TokenType.USER_DEFINED
        # A model's own pieces and normalized text have ▁ for spaces; in GGUF, tokens matched whole have spaces.
        is_piece = flags & AddedTokenFlag.NORMALIZED and self.space_prefix is None
        is_spaced = self.scores is not None and (is_piece or (is_in_model and not special))
        self.tokens[id] = token.replace("▁", " ") if is_spaced else token
        if self.scores is not None and not is_in_model:
            self.scores[id] = _ADDED_SCORE

    def fill(self, size: int) -> None:
        missing = range(len(self.tokens), size)
        self.tokens += [f"[PAD{id}]" for id in missing]
        self.types += [TokenType.UNUSED] * len(missing)
        if self.scores is not None:
            self.scores += [_UNUSED_SCORE] * len(missing)

    def cut(self, size: int) -> None:
        """Drops the tokens from id `size` on."""
        del self.tokens[size:], self.types[size:]
        if self.scores is not None:
            del self.scores[size:]
        self.added = {id: flags for id, flags in self.added.items() if id < size}

    def metadata(self) -> dict[str, Value]:
        values = {"model": string(self.model), "pre": self.keys.get("pre", string("default"))}
        values["tokens"] = array(ValueType.STRING, self.tokens)
        if self.scores is not None:
            values["scores"] = array(ValueType.FLOAT32, np.array(self.scores, np.float32))
        values["token_type"] = array(ValueType.INT32, np.array(self.types, np.int32))
        outside = ("chat", "huggingface")
        values |= {key: value for key, value in self.keys.items() if key != "pre" and not key.startswith(outside)}
        chat = {f"tokenizer.{key}": value for key, value in self.keys.items() if key.startswith(outside)}
        ours = describe_added_tokens(self.added) | describe_space_prefix(self.space_prefix)
        ours |= describe_splits_words(self.splits_words)
        return (
            {f"tokenizer.ggml.{key}": value for key, value in values.items()}
            | chat
            | ours
            | describe_end_ids(self.end_ids)
        )


def table(path: Path, vocab: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The tokens by id and their types; gaps between ids are left for added tokens.

    Raises InputError, naming `path`, for an empty vocabulary, for ids that are not integers below MAX_TOKENS and for
    ids that two tokens share.
    """
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < MAX_TOKENS:
            raise InputError(f"{path}: token {token!r:.80} has the id {id!r:.40}, wanted 0 to {MAX_TOKENS - 1}")
    size = max(vocab.values(), default=-1) + 1
    if not size:
        raise InputError(f"{path}: the vocabulary has no token")
    tokens, types = [f"[PAD{id}]" for id in range(size)], [int(TokenType.UNUSED)] * size
    for token, id in vocab.items():
        if types[id] == TokenType.NORMAL:
            raise InputError(f"{path}: tokens {tokens[id]!r:.80} and {token!r:.80} both have the id {id}")
        tokens[id], types[id] = token, TokenType.NORMAL
    return tokens, types
