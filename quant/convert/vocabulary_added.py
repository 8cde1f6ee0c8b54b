"""Added and special tokens from all files that name them, with the precedence that transformers gives to each file.

Sources of the rules: `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__` of transformers 5.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.tokenizer_keys import AddedTokenFlag
from lltool.quant.convert.vocabulary_table import MAX_TOKENS

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_CUT_FLAGS = (AddedTokenFlag.LSTRIP, AddedTokenFlag.RSTRIP, AddedTokenFlag.SINGLE_WORD, AddedTokenFlag.NORMALIZED)
_MOST_NAMES = 3  # tokens that a note lists


@dataclass(frozen=True)
class TokenizerClass:
    """Properties of a tokenizer class of transformers that the files do not state.

    `pre` is the pre-tokenizer for vocab.json and merges.txt; `composes` means that NFC is applied first. `defaults` are
    special tokens by key. `resets_flags` means that special tokens lose lstrip and similar flags, `reads_model` that
    the class reads a tokenizer.model, whose own tokens then replace additional_special_tokens. `is_wordpiece` means
    that it reads vocab.txt, and that settings such as do_lower_case count.
    """

    name: str = ""
    pre: str | None = None
    composes: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)
    resets_flags: bool = False
    reads_model: bool = False
    is_wordpiece: bool = False


@dataclass(frozen=True)
class NamedTokens:
    """The texts of the special tokens by kind ("bos", "eos", ...), from the files of the folder."""

    texts: Mapping[str, str] = field(default_factory=dict)


def add_missing_tokens(
    path: Path,
    tokenizer: "Tokenizer",
    settings: Mapping[str, Any],
    content: Mapping[str, Any],
    tokenizer_class: TokenizerClass,
    notes: list[str],
) -> NamedTokens:
    """Adds the tokens that files other than tokenizer.json name to `tokenizer`; returns the special tokens.

    `settings` are those of tokenizer_config.json; `content` is the tokenizer.json's, empty without one. Raises
    InputError for values of a wrong type; disagreements between the files are appended to `notes`.
    """
    from tokenizers import AddedToken

    file = path / "tokenizer_config.json"
    values: dict[str, Any] = {**tokenizer_class.defaults, **settings}
    values["extra_special_tokens"] = values.get("extra_special_tokens") or values.pop("additional_special_tokens", None)
    by_id: dict[int, AddedToken] = {}
    if settings.get("added_tokens_decoder") is not None:
        by_id = _read_decoder(file, settings["added_tokens_decoder"])
        _note_unread(path, values, by_id, tokenizer, notes)
    else:
        stated = _read_special_map(path, settings, notes)
        more = stated.pop("additional_special_tokens", None)
        if isinstance(listed := stated.pop("extra_special_tokens", None), list):
            values["extra_special_tokens"] = [*_items(file, values.get("extra_special_tokens")), *listed]
        known = {key: value for key, value in settings.items() if isinstance(value, str)} | stated
        named = {_text_of(file, key, known[key]) for key in _keys() if key in known}
        extra = _items(file, values.get("extra_special_tokens"))
        special_texts = named | {item for item in extra if isinstance(item, str)}
        by_id = _read_added_tokens(path / "added_tokens.json", special_texts)
        by_id |= {row["id"]: _token(path / "tokenizer.json", "added_tokens", row) for row in _rows(content)}
        values |= stated
        if values["extra_special_tokens"] is None and (content or not tokenizer_class.reads_model):
            values["extra_special_tokens"] = more

    by_text = {token.content: token for token in by_id.values()}
    special: dict[str, AddedToken] = {}
    for key in (*_keys(), *(key for key in values if key.endswith("_token") and key not in _keys())):
        token = _read_special(file, key, values.get(key))
        if token is not None:
            special[key] = by_text.get(token.content, token)
    extra_tokens = _extra_tokens(file, values)
    if isinstance(values.get("extra_special_tokens"), dict):
        special |= {f"extra {token.content}": by_text.get(token.content, token) for token in extra_tokens}
        extra_tokens = []

    before = {id: _describe(token) for id, token in tokenizer.get_added_tokens_decoder().items()}
    present = set(before.values())
    missing = [token for _, token in sorted(by_id.items()) if _describe(token) not in present]
    texts = {text for text, *_ in present} | {token.content for token in missing}
    for token in (*special.values(), *extra_tokens):
        if token.content not in texts:
            texts.add(token.content)
            missing.append(token)
    names = {token.content for token in special.values()}
    for token in missing:
        if token.content in names:
            token.special = True
    tokenizer.add_tokens(missing)
    if tokenizer_class.resets_flags:
        tokenizer.add_tokens([AddedToken(token.content, special=True) for token in (*special.values(), *extra_tokens)])
    _note_ids(file if settings.get("added_tokens_decoder") else path / "added_tokens.json", by_id, tokenizer, notes)
    return NamedTokens({kind: special[f"{kind}_token"].content for kind in _KINDS if f"{kind}_token" in special})


def forgets_added_tokens(
    path: Path,
    settings: Mapping[str, Any],
    content: Mapping[str, Any],
    tokenizer_class: TokenizerClass,
    notes: list[str],
) -> bool:
    """Whether an added_tokens_decoder replaces the added tokens of the tokenizer.json with this `content`.

    Classes with their own steps do that in transformers 5. It matters only if the two differ, which is noted.
    """
    file = path / "tokenizer_config.json"
    if not tokenizer_class.name or settings.get("added_tokens_decoder") is None:
        return False
    decoded = {token.content: id for id, token in _read_decoder(file, settings["added_tokens_decoder"]).items()}
    other = [row["content"] for row in _rows(content) if decoded.get(row["content"]) != row["id"]]
    if other:
        notes.append(
            f"{path / 'tokenizer.json'}: the added_tokens_decoder of {file.name} lacks {_list(other)} or has other "
            f"ids; it is used for all added tokens, as {tokenizer_class.name} of transformers 5 does"
        )
    return bool(other)


def list_added_tokens(tokenizer: "Tokenizer") -> Iterator[tuple[int, str, bool, AddedTokenFlag]]:
    """(id, text, whether it is special, flags) of each added token, ordered by id."""
    for id, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        flags = AddedTokenFlag.NONE
        for flag in _CUT_FLAGS:
            if getattr(token, (flag.name or "").lower()):
                flags |= flag
        yield id, token.content, token.special, flags


def check_ids(file: Path, content: Mapping[str, Any], tokenizer: "Tokenizer", notes: list[str]) -> None:
    """Notes the added tokens of tokenizer.json to which the library gives an id other than the file's."""
    stated = {row["id"]: _token(file, "added_tokens", row) for row in _rows(content)}
    _note_ids(file, stated, tokenizer, notes)


def _keys() -> list[str]:
    return [f"{kind}_token" for kind in _KINDS]


def _rows(content: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = content.get("added_tokens") or ()  # the library has checked their form
    return rows


def _describe(token: "AddedToken") -> tuple[str, bool, bool, bool, bool, bool]:
    return token.content, token.single_word, token.lstrip, token.rstrip, token.normalized, token.special


def _token(file: Path, key: str, value: Any, **flags: bool) -> "AddedToken":
    """An added token from its text or its JSON object."""
    from tokenizers import AddedToken

    row = {"content": value} if isinstance(value, str) else value
    if not isinstance(row, Mapping) or not isinstance(row.get("content"), str):
        raise InputError(f"{file}: {key}: found {value!r:.80}, wanted text or an object with content")
    for name in _FLAGS:
        if name in row and type(row[name]) is not bool:
            raise InputError(f"{file}: {key}: {name}: found {row[name]!r:.40}, wanted true or false")
    try:
        row["content"].encode()
    except UnicodeEncodeError:
        raise InputError(f"{file}: {key}: {row['content']!r:.80} is not Unicode text") from None
    return AddedToken(row["content"], **{name: row[name] for name in _FLAGS if name in row} | flags)


def _text_of(file: Path, key: str, value: Any) -> str | None:
    token = _read_special(file, key, value)
    return token.content if token else None


def _read_special(file: Path, key: str, value: Any) -> "AddedToken | None":
    """A named special token, or None. Unknown keys that end in `_token` count only if they hold text, not a flag."""
    if value is None or (key not in _keys() and not isinstance(value, str | Mapping)):
        return None
    if isinstance(value, Mapping) and key not in _keys() and not isinstance(value.get("content"), str):
        return None
    token = _token(file, key, value, special=True) if isinstance(value, str) else _token(file, key, value)
    return token if token.content else None


def _extra_tokens(file: Path, values: Mapping[str, Any]) -> "list[AddedToken]":
    """extra_special_tokens, whose older name is additional_special_tokens: a list, or texts by name."""
    tokens = []
    for item in _items(file, values.get("extra_special_tokens")):
        token = _token(file, "extra or additional_special_tokens", item)
        if isinstance(item, str):
            token.special = True
        tokens += [token] if token.content else []
    return tokens


def _items(file: Path, found: Any) -> list[Any]:
    items = list(found.values()) if isinstance(found, Mapping) else found or []
    if not isinstance(items, list):
        raise InputError(f"{file}: extra or additional_special_tokens: found {found!r:.80}, wanted a list of tokens")
    return items


def _read_decoder(file: Path, decoder: Any) -> "dict[int, AddedToken]":
    if not isinstance(decoder, Mapping):
        raise InputError(f"{file}: added_tokens_decoder: found {decoder!r:.80}, wanted an object of tokens by id")
    found = {}
    for text, value in decoder.items():
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < MAX_TOKENS):
            raise InputError(f"{file}: added_tokens_decoder: id {text!r:.40}, wanted 0 to {MAX_TOKENS - 1}")
        if not isinstance(value, Mapping):
            raise InputError(
                f"{file}: added_tokens_decoder: {text}: found {value!r:.80}, wanted an object with content"
            )
        found[int(text)] = _token(file, f"added_tokens_decoder: {text}", value)
    return found


def _read_added_tokens(file: Path, special: set[str | None]) -> "dict[int, AddedToken]":
    from tokenizers import AddedToken

    found = {}
    for text, id in read_json(file, missing={}).items():
        if type(id) is not int or not 0 <= id < MAX_TOKENS:
            raise InputError(f"{file}: token {text!r:.80} has the id {id!r:.40}, wanted 0 to {MAX_TOKENS - 1}")
        _token(file, "a token", text)
        found[id] = AddedToken(text, normalized=text not in special, special=text in special)
    return found


def _read_special_map(path: Path, settings: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The special_tokens_map.json, which overrides a tokenizer_config.json without added_tokens_decoder."""
    file = path / "special_tokens_map.json"
    found: dict[str, Any] = {}
    for key, value in read_json(file, missing={}).items():
        if key in ("additional_special_tokens", "extra_special_tokens"):
            found[key] = value
        elif value is None or isinstance(value, str | Mapping):
            found[key] = {**value, "special": True} if isinstance(value, Mapping) else value
        else:
            raise InputError(f"{file}: {key}: found {value!r:.80}, wanted text or an object with content")
    for key in _keys():
        ours = _text_of(file, key, found.get(key))
        if key in found and settings.get(key) and ours != _text_of(path / "tokenizer_config.json", key, settings[key]):
            theirs = _text_of(path / "tokenizer_config.json", key, settings[key])
            notes.append(f"{file}: {key} is {ours!r}, but {theirs!r} in tokenizer_config.json; the former is used")
    return found


def _note_unread(
    path: Path, values: Mapping[str, Any], by_id: "Mapping[int, AddedToken]", tokenizer: "Tokenizer", notes: list[str]
) -> None:
    """Notes contents of two files that transformers does not read if there is an added_tokens_decoder."""
    config = path / "tokenizer_config.json"
    known = {token.content for token in by_id.values()} | tokenizer.get_vocab(with_added_tokens=True).keys()
    file = path / "added_tokens.json"
    if unread := [text for text in read_json(file, missing={}) if text not in known]:
        notes.append(
            f"{file}: not read, because {config.name} has added_tokens_decoder; only the former has {_list(unread)}"
        )
    file = path / "special_tokens_map.json"
    for key, value in read_json(file, missing={}).items():
        if key in _keys() and (theirs := _text_of(file, key, value)) != _text_of(config, key, values.get(key)):
            used = _text_of(config, key, values.get(key))
            notes.append(f"{file}: {key} is {theirs!r}, not read: {config.name} has {used!r} and added_tokens_decoder")


def _note_ids(file: Path, stated: "Mapping[int, AddedToken]", tokenizer: "Tokenizer", notes: list[str]) -> None:
    moved = [(token.content, id, tokenizer.token_to_id(token.content)) for id, token in stated.items()]
    wrong = [f"{text!r} the id {id}, not {taken}" for text, id, taken in moved if taken != id]
    if wrong:
        more = f" and differs for {len(wrong) - _MOST_NAMES} others" if len(wrong) > _MOST_NAMES else ""
        notes.append(f"{file}: gives {', '.join(wrong[:_MOST_NAMES])}{more}; the latter is used, as transformers does")


def _list(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MOST_NAMES} more" if len(texts) > _MOST_NAMES else ""
    return ", ".join(map(repr, texts[:_MOST_NAMES])) + more
