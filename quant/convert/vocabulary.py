"""Converts a checkpoint's tokenizer to GGUF keys: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import ValueType, array, string
from lltool.gguf.regular_file import read_bytes
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.pretokenizer_match import match_pretokenizer
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.tokenizer_keys import AddedTokenFlag
from lltool.quant.convert.vocabulary_added import list_added_tokens
from lltool.quant.convert.vocabulary_sentencepiece import read_from_merges, read_from_model
from lltool.quant.convert.vocabulary_sources import TokenizerSource, is_byte_level, load_source, steps_of
from lltool.quant.convert.vocabulary_special import add_bos_and_eos, add_special_ids
from lltool.quant.convert.vocabulary_table import Vocabulary, table
from lltool.quant.convert.vocabulary_unigram import read_unigram_vocabulary
from lltool.quant.convert.vocabulary_wordpiece import read_wordpiece_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOOKS_SPECIAL = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
_CUT_FLAGS = AddedTokenFlag.LSTRIP | AddedTokenFlag.RSTRIP | AddedTokenFlag.SINGLE_WORD
# What reads the model part of a tokenizer.json, by its type; BPE is of two kinds.
_READERS: dict[str, Callable[[TokenizerSource, Mapping[str, Any]], Vocabulary]] = {
    "WordPiece": read_wordpiece_vocabulary,
    "Unigram": read_unigram_vocabulary,
}
_MAX_NAMED = 5  # tokens that a message lists


def read_vocabulary(path: Path, config: Mapping[str, Any], rows: int, pre: str | None = None) -> Vocabulary:
    """The tokenizer in folder `path` for an embedding of `rows` tokens; `pre` overrides the name of the pre-tokenizer.

    `config` is the text model's. Raises InputError if the tokenizer is of another kind or uses tokens for which the
    embedding has no row.
    """
    source = load_source(path, config, pre)
    vocabulary = _read_model(source, pre)
    vocabulary.notes += source.notes
    _put_added_tokens(vocabulary, source)
    templates = _read_chat_templates(path, source.settings)
    add_special_ids(vocabulary, source, path, config, list(templates.values()))
    add_bos_and_eos(vocabulary, source, path)
    _drop_above(vocabulary, path, rows, templates)
    vocabulary.fill(rows)
    _embed(vocabulary, source)
    _add_chat_templates(vocabulary, templates)
    return vocabulary


def _embed(vocabulary: Vocabulary, source: TokenizerSource) -> None:
    """Stores the whole tokenizer.json if keys cannot say all of it, and notes what other programs do."""
    if not vocabulary.embedded:
        return
    vocabulary.keys["huggingface.json"] = string(source.tokenizer.to_str())
    vocabulary.notes += [
        f"{source.file}: {why}, for which GGUF has no key: the file holds the whole tokenizer, and lltool uses it; "
        f"other programs {others}"
        for why, others in vocabulary.embedded
    ]


def load_tokenizer(path: Path, config: Mapping[str, Any]) -> "Tokenizer | None":
    """The tokenizer in folder `path` as an object of the `tokenizers` library, with all files merged.

    Returns None if the files do not describe how to split a text. Raises InputError for files that cannot be used.
    """
    source = load_source(path, config, "default", with_model=False)
    return source.tokenizer if source.describes_text else None


def _read_model(source: TokenizerSource, pre: str | None) -> Vocabulary:
    if source.sentencepiece is not None:
        return read_from_model(source, source.sentencepiece)
    tokenizer = source.tokenizer
    kind = type(tokenizer.model).__name__
    model = _model_part(source)
    if kind in _READERS:
        return _READERS[kind](source, model)
    if kind != "BPE":
        wanted = ", ".join(("BPE", *_READERS))
        raise InputError(f"{source.file}: tokenizer of kind {kind} is not supported; wanted one of {wanted}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise InputError(f"{source.file}: {name} is {model[name]!r:.40}, which is not supported")
    if is_byte_level(tokenizer):
        return _read_byte_level(source, model, pre)
    if model.get("byte_fallback"):
        return read_from_merges(source, model)
    raise InputError(
        f"{source.file}: BPE that is neither byte-level nor falls back to bytes is not supported; wanted ByteLevel "
        "in the pre-tokenizer or decoder, or byte_fallback"
    )


def _model_part(source: TokenizerSource) -> dict[str, Any]:
    if source.file.name == "tokenizer.json":
        part: dict[str, Any] = read_json(source.file)["model"]
        return part
    state: dict[str, Any] = json.loads(source.tokenizer.model.__getstate__())
    return state


def _read_byte_level(source: TokenizerSource, model: Mapping[str, Any], pre: str | None) -> Vocabulary:
    vocabulary = Vocabulary("gpt2", *table(source.file, model["vocab"]))
    steps = [step["type"] for step in steps_of(source.tokenizer.normalizer)]
    if other := [step for step in steps if step != "NFC"]:
        raise InputError(f"{source.file}: normalizer {other[0]} is not supported with byte-level BPE")
    if steps:
        vocabulary.notes.append("the tokenizer composes characters first (NFC); engines that run GGUF files do not")
    name = pre or match_pretokenizer(source.file, source.tokenizer, bool(model.get("ignore_merges")))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    vocabulary.keys |= {"pre": string(name), "merges": array(ValueType.STRING, merges)}
    return vocabulary


def _put_added_tokens(vocabulary: Vocabulary, source: TokenizerSource) -> None:
    """Sets the added tokens of all files. Raises InputError if one has the id of another token."""
    flagged = []
    for id, text, is_special, flags in list_added_tokens(source.tokenizer):
        taken = id < len(vocabulary.tokens) and vocabulary.types[id] != TokenType.UNUSED
        if taken and vocabulary.tokens[id] != text and source.tokenizer.model.id_to_token(id) != text:
            raise InputError(
                f"{source.file}: the added token {text!r:.60} gets the id {id}, which {vocabulary.tokens[id]!r:.60} has"
            )
        vocabulary.put(id, text, is_special or _looks_special(text), flags)
        if flags & _CUT_FLAGS:
            flagged.append(text)
    pieces = source.sentencepiece.pieces if source.sentencepiece else ()
    for id, piece in enumerate(pieces):
        if vocabulary.types[id] == TokenType.USER_DEFINED:
            vocabulary.tokens[id] = piece.replace("▁", " ")  # SentencePiece uses such pieces for runs of spaces
    if flagged:
        vocabulary.notes.append(
            f"{_list(flagged)} {'has' if len(flagged) == 1 else 'have'} flags that readers of GGUF files other than "
            "lltool do not know: lstrip, rstrip or single_word"
        )


def _looks_special(token: str) -> bool:
    """Whether a token looks special, for checkpoints that do not mark it; llama.cpp's converter does the same."""
    return token in ("<pad>", "<mask>") or any(token.startswith(a) and token.endswith(b) for a, b in _LOOKS_SPECIAL)


def _drop_above(vocabulary: Vocabulary, path: Path, rows: int, templates: Mapping[str, str]) -> None:
    """Drops tokens for which the embedding has no row. Raises InputError if a text or the model could use one."""
    if len(vocabulary.tokens) <= rows:
        return
    ends = ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id")
    ids = {vocabulary.keys[key].data for key in ends if key in vocabulary.keys} | set(vocabulary.end_ids)
    if vocabulary.model == "gpt2" and "unknown_token_id" in vocabulary.keys:
        ids -= {vocabulary.keys["unknown_token_id"].data}  # a byte-level vocabulary has no unknown bytes
    above = range(rows, len(vocabulary.tokens))
    is_plain = (TokenType.NORMAL, TokenType.BYTE, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    used = [
        vocabulary.tokens[id]
        for id in above
        if id in ids
        or vocabulary.types[id] in is_plain
        or any(vocabulary.tokens[id] in template for template in templates.values())
    ]
    if used:
        raise InputError(
            f"{path}: tokenizer of {len(vocabulary.tokens)} tokens, but the embedding has {rows} rows; {_list(used)} "
            "would have none: resize the model's embedding, or take these tokens out of the tokenizer's files"
        )
    dropped = [vocabulary.tokens[id] for id in above]
    vocabulary.cut(rows)
    for key in [key for key, value in vocabulary.keys.items() if key.endswith("_token_id") and value.data >= rows]:
        del vocabulary.keys[key]
    vocabulary.notes.append(f"{path}: the embedding has {rows} rows; unused tokens are left out: {_list(dropped)}")


def _list(texts: list[str]) -> str:
    more = f" and {len(texts) - _MAX_NAMED} more" if len(texts) > _MAX_NAMED else ""
    return ", ".join(f"{text!r:.60}" for text in texts[:_MAX_NAMED]) + more


def _read_chat_templates(path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name; the main one is "default". Template files take precedence over other files."""
    templates: dict[str, str] = {}
    file = path / "tokenizer_config.json"
    found = settings.get("chat_template")
    if not found:
        file = path / "chat_template.json"
        found = read_json(file, missing={}).get("chat_template")
    if isinstance(found, str):
        templates["default"] = found
    elif isinstance(found, list):
        for item in found:
            if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("name", "template")):
                raise InputError(f"{file}: chat_template is a list, wanted objects with name and template in it")
            templates[item["name"]] = item["template"]
    elif found is not None:
        raise InputError(f"{file}: chat_template: found {found!r:.80}, wanted text or a list")
    for jinja in (path / "chat_template.jinja", *sorted(path.glob("additional_chat_templates/*.jinja"))):
        if jinja.exists():
            name = "default" if jinja.name == "chat_template.jinja" else jinja.stem
            try:
                templates[name] = read_bytes(jinja).decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{jinja}: cannot be read as text: {error}") from None
    for text in [*templates, *templates.values()]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{file}: chat_template: has a lone surrogate, wanted Unicode text") from None
    return templates


def _add_chat_templates(vocabulary: Vocabulary, templates: Mapping[str, str]) -> None:
    others = sorted(templates.keys() - {"default"})
    if "default" in templates:
        vocabulary.keys["chat_template"] = string(templates["default"])
    if others:
        vocabulary.keys["chat_templates"] = array(ValueType.STRING, others)
        vocabulary.keys |= {f"chat_template.{name}": string(templates[name]) for name in others}
