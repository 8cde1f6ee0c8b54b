"""The special tokens that begin, end and pad texts: ids for GGUF keys, from all files that name them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import boolean, u32
from lltool.quant.convert.checkpoint import read_json
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.vocabulary_sources import TokenizerSource
from lltool.quant.convert.vocabulary_table import Vocabulary

_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "seperator",
    "cls": "cls",
    "mask": "mask",  # GGUF spells it so
}

# Whether texts of each kind of vocabulary begin with BOS and end with EOS (of "bert": SEP) if no file states it.
_ADDS = {"llama": (True, False), "bert": (True, True), "t5": (False, True)}

# Names by which llama.cpp finds the tokens that end a turn or a message if no key does; the first that exists counts.
_TURN_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "_<EOT>"),
    *("<｜end▁of▁sentence｜>", "<end_of_utterance>"),
)
_MESSAGE_END = "<|eom_id|>"


def add_special_ids(
    vocabulary: Vocabulary, source: TokenizerSource, path: Path, config: Mapping[str, Any], templates: Sequence[str]
) -> None:
    """Sets the `*_token_id` keys and `end_ids`; `templates` are the chat templates.

    A special token is taken from the tokenizer's files, or else from config.json. Invalid ids are noted and ignored.
    """
    ids = {token: id for id, token in enumerate(vocabulary.tokens)}
    names = dict(source.named.texts)
    if TokenType.UNKNOWN in vocabulary.types:
        names["unk"] = vocabulary.tokens[vocabulary.types.index(TokenType.UNKNOWN)]
    for kind, key in _KEYS.items():
        id = source.tokenizer.token_to_id(names[kind]) if kind in names else None
        if id is None and kind in names:
            id = ids.get(names[kind])
        if id is None:
            stated = _read_ids(vocabulary, path / "config.json", f"{kind}_token_id", config)
            id = stated[0] if stated else None
        if id is not None:
            vocabulary.keys[f"{key}_token_id"] = u32(id)
    _add_ends(vocabulary, path, config, templates)


def _add_ends(vocabulary: Vocabulary, path: Path, config: Mapping[str, Any], templates: Sequence[str]) -> None:
    generation = read_json(path / "generation_config.json", missing={})
    ends = _read_ids(vocabulary, path / "generation_config.json", "eos_token_id", generation)
    if not ends:
        ends = _read_ids(vocabulary, path / "config.json", "eos_token_id", config)
    controls = {token: id for id, token in enumerate(vocabulary.tokens) if vocabulary.types[id] == TokenType.CONTROL}
    from_template = [controls[text] for template in templates for text in _turn_ends(template, controls)]
    eos = vocabulary.keys.get("eos_token_id")
    first: list[int] = [] if eos is None else [eos.data]
    named = next((controls[name] for name in _TURN_ENDS if name in controls), None)
    message_end = controls.get(_MESSAGE_END)
    others = [id for id in dict.fromkeys([*ends, *from_template]) if id not in (*first, message_end)]
    turn_end = next(iter(others), named)
    if turn_end is not None and turn_end not in first:
        vocabulary.keys["eot_token_id"] = u32(turn_end)
    if message_end is not None and message_end not in first:
        vocabulary.keys["eom_token_id"] = u32(message_end)
    vocabulary.notes += [
        f"generation also ends at {vocabulary.tokens[id]!r}; readers of GGUF files other than lltool have no key for it"
        for id in others[1:]
    ]
    if others[1:]:
        stops = [*first, *others, message_end]
        vocabulary.end_ids = [id for id in dict.fromkeys(stops) if id is not None]


def _read_ids(vocabulary: Vocabulary, file: Path, key: str, values: Mapping[str, Any]) -> list[int]:
    """The ids under `key`: a number, its digits as text, or a list of these; -1 and null mean no id."""
    found = values.get(key)
    ids: list[int] = []
    for item in found if isinstance(found, list) else [found]:
        id: Any = item
        if isinstance(item, str) and item.isascii() and item.isdigit() and len(item) < 10:
            id = int(item)
        if type(id) is int and 0 <= id < len(vocabulary.tokens):
            ids.append(id)
        elif id is not None and not (type(id) is int and id == -1):
            vocabulary.notes.append(
                f"{file}: {key}: found {item!r:.80}, which is not an id below {len(vocabulary.tokens)}; ignored"
            )
    return ids


def _turn_ends(template: str, controls: Mapping[str, int]) -> list[str]:
    """The control tokens that a chat template writes right after an assistant's message.

    If the template writes the same token after every message, that one counts; of several tokens, the first after the
    word "assistant" counts.
    """
    present = sorted((text for text in controls if text in template), key=len, reverse=True)
    if not present:
        return []
    either = "|".join(map(re.escape, present))
    content = re.compile(
        rf"content['\"]?\]?\)?(?:\s*\|\s*trim|\.strip\(\))?\s*(?:-?\}}\}}|[+~]\s*['\"])\s*(?:\\n)?({either})"
    )
    found = list(dict.fromkeys(match.group(1) for match in content.finditer(template)))
    if len(found) < 2:
        return found
    start = template.find("assistant")
    later = content.search(template, start) if start >= 0 else None
    return [later.group(1)] if later else []


def add_bos_and_eos(vocabulary: Vocabulary, source: TokenizerSource, path: Path) -> None:
    """Sets whether encoding puts BOS first and EOS last: as in tokenizer.json, else as stated, else by the model kind.

    In a WordPiece vocabulary, CLS stands for BOS and SEP for EOS.

    Raises InputError for a stated value that is not true or false.
    """
    tokenizer, file = source.tokenizer, path / "tokenizer_config.json"
    has_steps = source.file.name == "tokenizer.json" or tokenizer.post_processor is not None
    around = _tokens_around(tokenizer) if has_steps else ([], [])
    is_wordpiece = vocabulary.model == "bert"
    if is_wordpiece and "cls_token_id" in vocabulary.keys:
        vocabulary.keys["bos_token_id"] = vocabulary.keys["cls_token_id"]
    sides = ("bos", "sep" if is_wordpiece else "eos")
    for side, ids, default in zip(sides, around, _ADDS.get(vocabulary.model, (False, False)), strict=True):
        key = f"add_{side}_token"
        stated = source.settings.get(key)
        if stated is not None and type(stated) is not bool:
            raise InputError(f"{file}: {key}: found {stated!r:.80}, wanted true or false")
        adds = bool(ids) if has_steps else default if stated is None else stated
        if has_steps and stated is not None and stated != adds:
            does = "adds one" if adds else "adds none"
            vocabulary.notes.append(
                f"{file}: {key} is {str(stated).lower()}, but tokenizer.json {does}; the latter is used"
            )
        if ids:
            _set_edge(vocabulary, source.file, side, ids)
        vocabulary.keys[key] = boolean(adds)
    if has_steps and around[1] and not is_wordpiece and _doubles_end(tokenizer, around):
        vocabulary.keys["add_sep_token"] = boolean(True)


def _doubles_end(tokenizer: Any, around: tuple[list[int], list[int]]) -> bool:
    """Whether two tokens stand between the texts of a pair, as in RoBERTa: the end of the first and a separator."""
    (begin, end), first, second = around, *(tokenizer.encode(text, add_special_tokens=False).ids for text in "ab")
    pair: list[int] = tokenizer.encode("a", "b").ids
    between = pair[len(begin) + len(first) : len(pair) - len(end) - len(second)]
    return len(between) == 2 and between[:1] == end


def _set_edge(vocabulary: Vocabulary, file: Path, side: str, ids: list[int]) -> None:
    """Makes the token that tokenizer.json puts first or last the BOS or EOS, because GGUF cannot add any other."""
    key, id = f"{_KEYS[side]}_token_id", ids[0] if side == "bos" else ids[-1]
    if len(ids) > 1:
        names = ", ".join(repr(vocabulary.tokens[one]) for one in ids)
        vocabulary.notes.append(f"{file}: puts {names} around texts; GGUF has a key only for {vocabulary.tokens[id]!r}")
    known = vocabulary.keys.get(key)
    if known is None or known.data != id:
        was = "none is named" if known is None else f"{vocabulary.tokens[known.data]!r} is named"
        vocabulary.notes.append(
            f"{file}: puts {vocabulary.tokens[id]!r} where {side} belongs, although {was}; the former is used"
        )
    vocabulary.keys[key] = u32(id)


def _tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that encoding puts before and after a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    ids = encoding.ids
    for start in range(len(ids) - len(bare) + 1):
        if ids[start : start + len(bare)] == bare:
            return ids[:start], ids[start + len(bare) :]
    return [], []
