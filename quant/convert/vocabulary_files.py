"""Restores the tokenizer files of a Hugging Face checkpoint from the tokenizer in GGUF metadata."""

import json
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value
from lltool.quant.convert.pretokenizers import PRE_TOKENIZERS
from lltool.quant.convert.sentencepiece_model import SentencePieceModel, TokenType, write_sentencepiece
from lltool.quant.convert.tokenizer_keys import (
    AddedTokenFlag,
    read_added_tokens,
    read_end_ids,
    read_flag,
    read_space_prefix,
)

_SPECIAL_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


class StoredVocabulary:
    """The `tokenizer.` keys of a GGUF file. Raises InputError if there is no tokenizer or one of another kind.

    A tokenizer that is embedded whole is the tokenizer.json.
    """

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self.values = {
            key.removeprefix("tokenizer.").removeprefix("ggml."): value.data
            for key, value in metadata.items()
            if key.startswith("tokenizer.")
        }
        self.model = self._text("model", "")
        self._whole = self._text("huggingface.json", "")
        if self.model not in ("gpt2", "llama") and not self._whole:
            raise InputError(
                f"tokenizer.ggml.model: found {self.model!r}, wanted gpt2 or llama, or an embedded tokenizer.json"
            )
        self.tokens: list[str] = self._texts("tokens")
        has_merges = self.model == "gpt2" and not self._whole
        self.merges = [self._merge(text) for text in self._texts("merges")] if has_merges else []
        self._composes = read_flag(metadata, "composes")
        self.scores = self._numbers("scores", "f") if self.model == "llama" else [0.0] * len(self.tokens)
        normal = [int(TokenType.NORMAL)] * len(self.tokens)
        self.types: list[int] = self._numbers("token_type", "iu") if "token_type" in self.values else normal
        for key, count in (("token_type", len(self.types)), ("scores", len(self.scores))):
            if count != len(self.tokens):
                raise InputError(f"tokenizer.ggml.{key}: {count} items for {len(self.tokens)} tokens")
        if strange := set(self.types) - {0, *TokenType}:
            raise InputError(f"tokenizer.ggml.token_type: found {min(strange)}, wanted 1 to {max(TokenType)}")
        stored = read_added_tokens(metadata, len(self.tokens))
        self._more_ends = read_end_ids(metadata, len(self.tokens))
        self._space_prefix = read_space_prefix(metadata) if self.model == "llama" else None
        self._drop_filling()
        whole = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
        self._knows_added = stored is not None
        if stored is None:
            stored = {id: AddedTokenFlag.NONE for id, type in enumerate(self.types) if type in whole}
        self._added = {id: flags for id, flags in stored.items() if id < len(self.tokens)}
        if not self.tokens:
            raise InputError("tokenizer.ggml.tokens: has no token")
        if len(set(self.tokens)) < len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if t in self.tokens[:i])
            raise InputError(f"tokenizer.ggml.tokens: {twice!r} appears twice; no tokenizer.json can hold both")

    def special_ids(self) -> dict[str, int]:
        """The ids of bos, eos, unk and pad, as far as the file has them."""
        found = {kind: self.values.get(f"{key}_token_id") for kind, key in _SPECIAL_IDS.items()}
        return {kind: id for kind, id in found.items() if type(id) is int and 0 <= id < len(self.tokens)}

    def end_ids(self) -> list[int]:
        """The ids of the tokens that end generation."""
        ids = [*(self.values.get(f"{kind}_token_id") for kind in ("eos", "eot", "eom")), *self._more_ends]
        return list(dict.fromkeys(id for id in ids if type(id) is int and 0 <= id < len(self.tokens)))

    def adds(self, side: str) -> bool:
        """Whether encoding puts "bos" first or "eos" last; by default as in llama.cpp."""
        is_byte_level = self.model == "gpt2" and not self._whole
        by_kind = side == "bos" and (self.model == "llama" or (is_byte_level and PRE_TOKENIZERS[self._pre()].add_bos))
        return self._flag(f"add_{side}_token", by_kind)

    def files(self, context_length: int) -> dict[str, bytes]:
        """The contents of the files, by name. Raises InputError for values that no file can hold."""
        files = {
            "tokenizer.json": self._whole.encode() or _json(self._tokenizer()),
            "tokenizer_config.json": _json(self._settings(context_length)),
        }
        if self.model == "llama" and not self._whole:
            files["tokenizer.model"] = self._sentencepiece()
        return files

    def _text(self, key: str, default: str) -> str:
        found = self.values.get(key, default)
        if not isinstance(found, str):
            raise self._wrong(key, "text")
        _check_utf8(key, found)
        return found

    def _flag(self, key: str, default: bool) -> bool:
        found = self.values.get(key, default)
        if type(found) is not bool:
            raise self._wrong(key, "true or false")
        return found

    def _texts(self, key: str) -> list[str]:
        found = self.values.get(key)
        if not isinstance(found, Sequence) or isinstance(found, str):
            raise self._wrong(key, "an array of text")
        texts = list(found)
        for text in texts:
            _check_utf8(key, text)
        return texts

    def _numbers(self, key: str, kinds: str) -> list[Any]:
        found = self.values.get(key)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds or not np.isfinite(found).all():
            raise self._wrong(key, f"an array of {'finite floats' if kinds == 'f' else 'integers'}")
        numbers: list[Any] = found.tolist()
        return numbers

    def _merge(self, text: str) -> list[str]:
        pair = text.split(" ")
        if len(pair) != 2:
            raise InputError(f"tokenizer.ggml.merges: {short(text)}, wanted two tokens with a space between them")
        return pair

    def _wrong(self, key: str, wanted: str) -> InputError:
        found = short(self.values[key]) if key in self.values else "nothing"
        return InputError(f"{_whole(key)}: found {found}, wanted {wanted}")

    def _drop_filling(self) -> None:
        """Removes the unused tokens at the end that only pad the table to the size of the embedding."""
        while self.types and self.types[-1] == TokenType.UNUSED and self.tokens[-1] == f"[PAD{len(self.tokens) - 1}]":
            self.tokens.pop()
            self.types.pop()

    def _pre(self) -> str:
        name = self._text("pre", "default")
        if name not in PRE_TOKENIZERS:
            raise InputError(f"tokenizer.ggml.pre: found {name!r}, which this version does not know")
        return name

    def _tokenizer(self) -> dict[str, Any]:
        vocab = {token: id for id, token in enumerate(self.tokens)}
        model = {token: id for token, id in vocab.items() if id < self._model_size()}
        special = self._special_tokens()
        added = [
            {
                "id": id,
                "content": self.tokens[id],
                "single_word": bool(flags & AddedTokenFlag.SINGLE_WORD),
                "lstrip": bool(flags & AddedTokenFlag.LSTRIP),
                "rstrip": bool(flags & AddedTokenFlag.RSTRIP),
                "normalized": bool(flags & AddedTokenFlag.NORMALIZED),
                "special": self.types[id] != TokenType.USER_DEFINED,
            }
            for id, flags in sorted(self._added.items())
        ]
        template: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
        used = {}
        for side, place in (("bos", 0), ("eos", 2)):
            if self.adds(side) and side in special:
                token = special[side]
                template.insert(place, {"SpecialToken": {"id": token, "type_id": 0}})
                used[token] = {"id": token, "ids": [vocab[token]], "tokens": [token]}
        pair = template + [{step: {**values, "type_id": 1} for step, values in part.items()} for part in template]
        pair = [{"Sequence": {"id": "B", "type_id": 1}} if part == _SECOND else part for part in pair]
        processor = {"type": "TemplateProcessing", "single": template, "pair": pair, "special_tokens": used}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            **(self._byte_level(model) if self.model == "gpt2" else self._byte_fallback(model)),
            "post_processor": processor,
        }

    def _model_size(self) -> int:
        """The size of the model's own vocabulary, which excludes added tokens at the end if the file marks them."""
        size = len(self.tokens)
        while self._knows_added and size - 1 in self._added and not self._added[size - 1] & AddedTokenFlag.IN_MODEL:
            size -= 1
        return size

    def _byte_level(self, vocab: Mapping[str, int]) -> dict[str, Any]:
        pre = PRE_TOKENIZERS[self._pre()]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        splits = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in pre.patterns
        ]
        return {
            "normalizer": {"type": "NFC"} if self._composes else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
            "decoder": byte_level,
            "model": _bpe(vocab, self.merges, ignore_merges=pre.ignore_merges),
        }

    def _byte_fallback(self, vocab: Mapping[str, int]) -> dict[str, Any]:
        prefix = self._adds_space()
        model = _bpe(vocab, self._merges_from_scores(vocab), byte_fallback=TokenType.BYTE in self.types, fuse_unk=True)
        model["unk_token"] = self._special_tokens().get("unk")
        steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
        steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
        if prefix:
            steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, _SPACE]}
        scheme = self._space_prefix
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        return {
            "normalizer": None if scheme else prepend if prefix else _SPACE,
            "pre_tokenizer": metaspace if scheme else None,
            "decoder": {"type": "Sequence", "decoders": steps},
            "model": model,
        }

    def _merges_from_scores(self, vocab: Mapping[str, int]) -> list[list[str]]:
        """All pairs of tokens that form a token, best score first; SentencePiece finds these merges while encoding."""
        ranked = []
        for token, id in vocab.items():
            if self.types[id] != TokenType.NORMAL:
                continue
            for cut in range(1, len(token)):
                left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
                if left is not None and right is not None:
                    ranked.append((-self.scores[id], id, left, right))
        return [[self.tokens[left], self.tokens[right]] for _, _, left, right in sorted(ranked)]

    def _adds_space(self) -> bool:
        return self._flag("add_space_prefix", True)

    def _special_tokens(self) -> dict[str, str]:
        return {kind: self.tokens[id] for kind, id in self.special_ids().items()}

    def _settings(self, context_length: int) -> dict[str, Any]:
        templates = {"default": "chat_template"} if self._text("chat_template", "") else {}
        templates |= {key.partition(".")[2]: key for key in self.values if key.startswith("chat_template.")}
        chat: Any = [{"name": name, "template": self._text(key, "")} for name, key in templates.items()]
        if list(templates) == ["default"]:
            chat = chat[0]["template"]
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{kind}_token": token for kind, token in self._special_tokens().items()},
            "add_bos_token": self.adds("bos"),
            "add_eos_token": self.adds("eos"),
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
            **({"chat_template": chat} if chat else {}),
        }

    def _sentencepiece(self) -> bytes:
        unknown = self.special_ids().get("unk", 0)
        types = [TokenType.CONTROL if type == TokenType.UNKNOWN else type for type in self.types]
        types[unknown] = TokenType.UNKNOWN  # SentencePiece requires exactly one
        pieces = [
            token.replace(" ", "▁") if type == TokenType.USER_DEFINED else token
            for token, type in zip(self.tokens, types, strict=True)
        ]
        return write_sentencepiece(SentencePieceModel(pieces, self.scores[: len(pieces)], types, self._adds_space()))


_SECOND = {"Sequence": {"id": "A", "type_id": 1}}


def _check_utf8(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{_whole(key)}: {short(text)} is not UTF-8; no tokenizer file can hold it") from None


def _whole(key: str) -> str:
    return f"tokenizer.{key}" if key.startswith("chat") else f"tokenizer.ggml.{key}"


def _bpe(vocab: Mapping[str, int], merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    defaults = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **defaults, **flags, **settings, "vocab": dict(vocab), "merges": merges}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()
