"""The way back: tokenizer files of a Hugging Face checkpoint from the tokenizer in GGUF metadata."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value
from lltool.gguf.pretokenizers import PRE_TOKENIZERS
from lltool.gguf.sentencepiece_model import SentencePieceModel, TokenType, write_sentencepiece

_SPECIAL_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


class StoredVocabulary:
    """The `tokenizer.` keys of a GGUF file. Raises InputError where there is no tokenizer, or one of another kind."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self.values = {
            key.removeprefix("tokenizer.").removeprefix("ggml."): value.data
            for key, value in metadata.items()
            if key.startswith("tokenizer.")
        }
        self.model = self.values.get("model")
        if self.model not in ("gpt2", "llama"):
            raise InputError(f"tokenizer.ggml.model: found {self.model!r}, wanted gpt2 or llama")
        self.tokens: list[str] = list(self._array("tokens"))
        self.types = [int(n) for n in self._array("token_type", [TokenType.NORMAL] * len(self.tokens))]
        self.order = self._array("merges" if self.model == "gpt2" else "scores")
        for key, values in (
            ("token_type", self.types),
            ("scores", self.order if self.model == "llama" else self.tokens),
        ):
            if len(values) != len(self.tokens):
                raise InputError(f"tokenizer.ggml.{key}: {len(values)} items for {len(self.tokens)} tokens")
        self._drop_filling()
        bad = next((token for token in self.tokens if any("\ud800" <= c <= "\udfff" for c in token)), None)
        if bad is not None:
            raise InputError(f"tokenizer.ggml.tokens: {bad!r} is not UTF-8; no tokenizer.json can hold it")
        if len(set(self.tokens)) < len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if t in self.tokens[:i])
            raise InputError(f"tokenizer.ggml.tokens: {twice!r} appears twice; no tokenizer.json can hold both")

    def special_ids(self) -> dict[str, int]:
        """bos, eos, unk, pad: those that the file has."""
        found = {kind: self.values.get(f"{key}_token_id") for kind, key in _SPECIAL_IDS.items()}
        return {kind: id for kind, id in found.items() if isinstance(id, int) and 0 <= id < len(self.tokens)}

    def end_ids(self) -> list[int]:
        """Tokens that end generation."""
        ids = [self.values.get(f"{kind}_token_id") for kind in ("eos", "eot", "eom")]
        return list(dict.fromkeys(id for id in ids if isinstance(id, int)))

    def adds(self, side: str) -> bool:
        """Whether encoding puts "bos" first or "eos" last; if the file does not say, as llama.cpp takes it."""
        by_kind = side == "bos" and (self.model == "llama" or PRE_TOKENIZERS[self._pre()].add_bos)
        return bool(self.values.get(f"add_{side}_token", by_kind))

    def files(self, context_length: int) -> dict[str, bytes]:
        """Contents by file name."""
        files = {
            "tokenizer.json": _json(self._tokenizer()),
            "tokenizer_config.json": _json(self._settings(context_length)),
        }
        if self.model == "llama":
            files["tokenizer.model"] = self._sentencepiece()
        return files

    def _array(self, key: str, default: Sequence[Any] | None = None) -> Sequence[Any]:
        found = self.values.get(key, default)
        if found is None or isinstance(found, str | int | float):
            raise InputError(f"tokenizer.ggml.{key}: found {found!r}, wanted an array")
        return found  # type: ignore[no-any-return]

    def _drop_filling(self) -> None:
        """Takes off the unused tokens that only fill the table up to the embedding."""
        while self.types and self.types[-1] == TokenType.UNUSED and self.tokens[-1] == f"[PAD{len(self.tokens) - 1}]":
            self.tokens.pop()
            self.types.pop()

    def _pre(self) -> str:
        name = str(self.values.get("pre", "default"))
        if name not in PRE_TOKENIZERS:
            raise InputError(f"tokenizer.ggml.pre: found {name!r}, which this version does not know")
        return name

    def _tokenizer(self) -> dict[str, Any]:
        vocab = {token: id for id, token in enumerate(self.tokens)}
        special = self._special_tokens()
        added = [
            {
                "id": id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": type != TokenType.USER_DEFINED,
            }
            for id, (token, type) in enumerate(zip(self.tokens, self.types, strict=True))
            if type in (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
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
            **(self._byte_level(vocab) if self.model == "gpt2" else self._byte_fallback(vocab)),
            "post_processor": processor,
        }

    def _byte_level(self, vocab: Mapping[str, int]) -> dict[str, Any]:
        pre = PRE_TOKENIZERS[self._pre()]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        splits = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in pre.patterns
        ]
        return {
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
            "decoder": byte_level,
            "model": _bpe(vocab, [merge.split(" ") for merge in self.order], ignore_merges=pre.ignore_merges),
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
        return {
            "normalizer": prepend if prefix else _SPACE,
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": steps},
            "model": model,
        }

    def _merges_from_scores(self, vocab: Mapping[str, int]) -> list[list[str]]:
        """Every way to put a token together from two, best score first: what SentencePiece decides as it goes."""
        scores = self.order
        ranked = []
        for token, id in vocab.items():
            if self.types[id] != TokenType.NORMAL:
                continue
            for cut in range(1, len(token)):
                left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
                if left is not None and right is not None:
                    ranked.append((-float(scores[id]), id, left, right))
        return [[self.tokens[left], self.tokens[right]] for _, _, left, right in sorted(ranked)]

    def _adds_space(self) -> bool:
        return bool(self.values.get("add_space_prefix", True))

    def _special_tokens(self) -> dict[str, str]:
        return {kind: self.tokens[id] for kind, id in self.special_ids().items()}

    def _settings(self, context_length: int) -> dict[str, Any]:
        templates = {key.partition(".")[2]: key for key in self.values if key.startswith("chat_template.")}
        chat = self.values.get("chat_template")
        if templates:
            named = [{"name": name, "template": self.values[key]} for name, key in templates.items()]
            chat = ([{"name": "default", "template": chat}] if chat else []) + named
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
        types[unknown] = TokenType.UNKNOWN  # SentencePiece wants exactly one
        pieces = [
            token.replace(" ", "▁") if type == TokenType.USER_DEFINED else token
            for token, type in zip(self.tokens, types, strict=True)
        ]
        scores: Sequence[float] = [float(score) for score in self.order[: len(pieces)]]
        return write_sentencepiece(SentencePieceModel(pieces, scores, types, self._adds_space()))


_SECOND = {"Sequence": {"id": "A", "type_id": 1}}


def _bpe(vocab: Mapping[str, int], merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    defaults = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **defaults, **flags, **settings, "vocab": dict(vocab), "merges": merges}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()
