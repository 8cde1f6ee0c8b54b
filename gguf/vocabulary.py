"""A checkpoint's tokenizer as GGUF keys: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lltool.gguf.checkpoint import read_json
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, boolean, string, u32
from lltool.gguf.pretokenizer_match import match_pretokenizer
from lltool.gguf.sentencepiece_model import TokenType, read_sentencepiece

_ADDED_SCORE = -1000.0  # of tokens added to a SentencePiece model, and below it of those that only fill up the table
_UNUSED_SCORE = -10000.0
_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
_LOOKS_SPECIAL = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


@dataclass
class Vocabulary:
    """Tokens by id, with `keys` that say how text becomes tokens; `notes` are for the user."""

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    keys: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, id: int, token: str, special: bool) -> None:
        """Sets an added token, making the table as long as it takes. In a SentencePiece model `▁` was for a space."""
        self.fill(id + 1)
        if self.types[id] == TokenType.UNKNOWN:
            return
        self.types[id] = TokenType.CONTROL if special else TokenType.USER_DEFINED
        self.tokens[id] = token.replace("▁", " ") if self.scores is not None and not special else token
        if self.scores is not None:
            self.scores[id] = _ADDED_SCORE

    def fill(self, size: int) -> None:
        missing = range(len(self.tokens), size)
        self.tokens += [f"[PAD{id}]" for id in missing]
        self.types += [TokenType.UNUSED] * len(missing)
        if self.scores is not None:
            self.scores += [_UNUSED_SCORE] * len(missing)

    def metadata(self) -> dict[str, Value]:
        values = {"model": string(self.model), "pre": self.keys.get("pre", string("default"))}
        values["tokens"] = array(ValueType.STRING, self.tokens)
        if self.scores is not None:
            values["scores"] = array(ValueType.FLOAT32, np.array(self.scores, np.float32))
        values["token_type"] = array(ValueType.INT32, np.array(self.types, np.int32))
        values |= {key: value for key, value in self.keys.items() if key != "pre" and not key.startswith("chat")}
        chat = {f"tokenizer.{key}": value for key, value in self.keys.items() if key.startswith("chat")}
        return {f"tokenizer.ggml.{key}": value for key, value in values.items()} | chat


def read_vocabulary(path: Path, config: Mapping[str, Any], rows: int, pre: str | None = None) -> Vocabulary:
    """The tokenizer in folder `path` for an embedding of `rows` tokens; `pre` overrides which pre-tokenizer it is.

    `config` is that of the text model. Raises InputError where the tokenizer is of another kind, or has more tokens.
    """
    files = read_json(path / "tokenizer.json", missing={})
    settings = read_json(path / "tokenizer_config.json", missing={})
    tokenizer = _load_tokenizer(path / "tokenizer.json") if files else None
    if _is_byte_level(files):
        vocabulary = _read_byte_level(path / "tokenizer.json", files, tokenizer, pre)
    elif (path / "tokenizer.model").exists():
        vocabulary = _read_sentencepiece(path / "tokenizer.model")
    elif files.get("model", {}).get("byte_fallback"):
        vocabulary = _read_byte_fallback(path / "tokenizer.json", files)
    elif files:
        kind = files.get("model", {}).get("type", "?")
        raise InputError(f"{path / 'tokenizer.json'}: tokenizer of kind {kind} is not supported; wanted BPE")
    else:
        raise InputError(f"{path}: no tokenizer: wanted tokenizer.json or tokenizer.model")
    for id, token, special in _added_tokens(path, files, settings):
        vocabulary.put(id, token, special)
    if len(vocabulary.tokens) > rows:
        raise InputError(f"{path}: tokenizer of {len(vocabulary.tokens)} tokens, but the embedding has {rows} rows")
    vocabulary.fill(rows)
    _add_special_ids(vocabulary, path, config, settings)
    _add_bos_and_eos(vocabulary, tokenizer, settings)
    _add_chat_templates(vocabulary, path, settings)
    return vocabulary


def _load_tokenizer(path: Path) -> Any:
    """The `tokenizers` object of a tokenizer.json; after that its contents have the form that they should."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(path.read_bytes())  # from_file raises a bare Exception
    except ValueError as error:
        raise InputError(f"{path}: not a tokenizer.json that `tokenizers` can read: {error}") from None


def _is_byte_level(files: Mapping[str, Any]) -> bool:
    found = [files.get("pre_tokenizer"), files.get("decoder")]
    steps = [
        step for part in found if part for step in (part, *part.get("pretokenizers", ()), *part.get("decoders", ()))
    ]
    return files.get("model", {}).get("type") == "BPE" and any(step["type"] == "ByteLevel" for step in steps)


def _read_byte_level(path: Path, files: Mapping[str, Any], tokenizer: Any, pre: str | None) -> Vocabulary:
    model = files["model"]
    vocabulary = Vocabulary("gpt2", *_table(path, model["vocab"]))
    normalizer = files.get("normalizer")
    if normalizer and normalizer != {"type": "NFC"}:
        raise InputError(f"{path}: normalizer {normalizer.get('type')} is not supported with byte-level BPE")
    if normalizer:
        vocabulary.notes.append("the tokenizer composes characters first (NFC); engines of GGUF files do not")
    name = pre or match_pretokenizer(path, tokenizer, bool(model.get("ignore_merges")))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    vocabulary.keys |= {"pre": string(name), "merges": array(ValueType.STRING, merges)}
    return vocabulary


def _read_sentencepiece(path: Path) -> Vocabulary:
    model = read_sentencepiece(path)
    vocabulary = Vocabulary("llama", list(model.pieces), list(model.types), list(model.scores))
    for id, type in enumerate(model.types):
        if type == TokenType.USER_DEFINED:
            vocabulary.put(id, model.pieces[id], special=False)
    vocabulary.keys["add_space_prefix"] = boolean(model.add_space_prefix)
    if model.remove_extra_whitespaces:
        vocabulary.notes.append("the tokenizer drops extra spaces; engines of GGUF files keep them")
    return vocabulary


def _read_byte_fallback(path: Path, files: Mapping[str, Any]) -> Vocabulary:
    """A SentencePiece BPE model that only its Hugging Face conversion is left of: merges in order stand for scores."""
    model = files["model"]
    vocabulary = Vocabulary("llama", *_table(path, model["vocab"]), scores=[])
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
        vocabulary.types[model["vocab"][unknown]] = TokenType.UNKNOWN
    vocabulary.keys["add_space_prefix"] = boolean(_adds_space(path, files))
    return vocabulary


def _adds_space(path: Path, files: Mapping[str, Any]) -> bool:
    """Whether spaces become ▁ and one is put in front; anything else that is done to the text is refused."""
    normalizer, split = files.get("normalizer") or {}, files.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *split.get("pretokenizers", [split])]
    prefix = False
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Metaspace", "replacement": "▁", "split": False}:
                prefix = step.get("prepend_scheme", "always") != "never"
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
                pass  # there are no spaces left to split at
            case {"type": type}:
                raise InputError(f"{path}: step {type} is not supported with a SentencePiece vocabulary")
    return prefix


def _table(path: Path, vocab: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """Tokens by id and their types; ids may have gaps, where added tokens go."""
    size = max(vocab.values(), default=-1) + 1
    if not 0 < size <= 1 << 24 or min(vocab.values()) < 0:
        raise InputError(f"{path}: token ids up to {size - 1}, wanted 0 to 16777215")
    tokens, types = [f"[PAD{id}]" for id in range(size)], [int(TokenType.UNUSED)] * size
    for token, id in vocab.items():
        tokens[id], types[id] = token, TokenType.NORMAL
    return tokens, types


def _added_tokens(path: Path, files: Mapping[str, Any], settings: Mapping[str, Any]) -> list[tuple[int, str, bool]]:
    """(id, token, whether it is a control token) from the first file that lists them, by id."""
    if listed := files.get("added_tokens"):
        rows = [(token["id"], token["content"], token.get("special", False)) for token in listed]
    elif decoder := settings.get("added_tokens_decoder"):
        rows = [(int(id), token["content"], token.get("special", False)) for id, token in decoder.items()]
    else:
        rows = [(id, token, False) for token, id in read_json(path / "added_tokens.json", missing={}).items()]
    return [(id, token, special or _looks_special(token)) for id, token, special in sorted(rows)]


def _looks_special(token: str) -> bool:
    """Some checkpoints forget to mark them; llama.cpp's converter takes the same for control tokens."""
    return token in ("<pad>", "<mask>") or any(token.startswith(a) and token.endswith(b) for a, b in _LOOKS_SPECIAL)


def _text_of(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _is_token(id: Any, count: int) -> bool:
    return type(id) is int and 0 <= id < count


def _add_special_ids(
    vocabulary: Vocabulary, path: Path, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    ids = {token: id for id, token in enumerate(vocabulary.tokens)}
    named = {**read_json(path / "special_tokens_map.json", missing={}), **settings}
    if TokenType.UNKNOWN in vocabulary.types:
        named["unk_token"] = vocabulary.tokens[vocabulary.types.index(TokenType.UNKNOWN)]
    for kind, key in _KEYS.items():
        id = ids.get(_text_of(named.get(f"{kind}_token")) or "")
        if id is None:
            stated: Any = config.get(f"{kind}_token_id")
            id = stated[0] if isinstance(stated, list) and stated else stated
        if _is_token(id, len(ids)):
            vocabulary.keys[f"{key}_token_id"] = u32(id)
    # Generation also ends at other tokens of this list: one that ends a turn, and Llama's end of message.
    ends = read_json(path / "generation_config.json", missing={}).get("eos_token_id")
    eos = vocabulary.keys.get("eos_token_id")
    more = (
        [id for id in ends if _is_token(id, len(ids)) and (eos is None or id != eos.data)]
        if isinstance(ends, list)
        else []
    )
    for id in list(more):
        if vocabulary.tokens[id] == "<|eom_id|>":
            vocabulary.keys["eom_token_id"] = u32(id)
            more.remove(id)
    if more:
        vocabulary.keys["eot_token_id"] = u32(more[0])
        vocabulary.notes += [
            f"generation also ends at {vocabulary.tokens[id]!r}; GGUF has no key for it" for id in more[1:]
        ]


def _add_bos_and_eos(vocabulary: Vocabulary, tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Whether encoding puts BOS first and EOS last: as stated, else as tokenizer.json does, else by the kind."""
    sides = {"bos": vocabulary.model == "llama", "eos": False}
    if tokenizer is not None and tokenizer.post_processor is not None:
        encoded = tokenizer.encode("a", add_special_tokens=True).ids
        for side, place in (("bos", 0), ("eos", -1)):
            id = vocabulary.keys.get(f"{side}_token_id")
            sides[side] = id is not None and bool(encoded) and encoded[place] == id.data
    for side, found in sides.items():
        stated = settings.get(f"add_{side}_token")
        vocabulary.keys[f"add_{side}_token"] = boolean(stated if isinstance(stated, bool) else found)


def _add_chat_templates(vocabulary: Vocabulary, path: Path, settings: Mapping[str, Any]) -> None:
    templates: dict[str, str] = {}
    found = settings.get("chat_template") or read_json(path / "chat_template.json", missing={}).get("chat_template")
    if isinstance(found, str):
        templates["default"] = found
    elif isinstance(found, list):
        try:
            templates |= {str(item["name"]): str(item["template"]) for item in found}
        except (TypeError, KeyError):
            raise InputError(f"{path}: chat_template is a list, wanted objects with name and template in it") from None
    for file in (path / "chat_template.jinja", *sorted(path.glob("additional_chat_templates/*.jinja"))):
        if file.exists():
            name = "default" if file.name == "chat_template.jinja" else file.stem
            templates[name] = file.read_text(encoding="utf-8")
    others: Sequence[str] = sorted(templates.keys() - {"default"})
    if "default" in templates:
        vocabulary.keys["chat_template"] = string(templates["default"])
    if others:
        vocabulary.keys["chat_templates"] = array(ValueType.STRING, others)
        vocabulary.keys |= {f"chat_template.{name}": string(templates[name]) for name in others}
