"""Structural tags: free text in which each trigger begins a part that follows a JSON schema, as vLLM has them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lltool.engine.grammar.vocabulary import GrammarVocabulary
from lltool.gguf.errors import InputError

_TEXT = r"/(.|\n)*/"


def read_structural_tag(tag: Mapping[str, Any]) -> str:
    """Checks vLLM's form, `structures` of `begin`, `schema` and `end`, and `triggers`; returns its JSON.

    Raises InputError for another form.
    """
    structures, triggers = tag.get("structures"), tag.get("triggers")
    if not isinstance(structures, Sequence) or not structures or not isinstance(triggers, Sequence) or not triggers:
        raise InputError("structural tag: wanted `structures`, a list of begin, schema and end, and `triggers`, texts")
    for place, each in enumerate(structures):
        if not isinstance(each, Mapping) or not isinstance(begin := each.get("begin"), str):
            raise InputError(f"structural tag: structures[{place}] has no text `begin`")
        if not isinstance(each.get("end", ""), str) or not isinstance(each.get("schema", {}), Mapping):
            raise InputError(f"structural tag: structures[{place}]: wanted a text `end` and an object `schema`")
        if not any(isinstance(trigger, str) and trigger and begin.startswith(trigger) for trigger in triggers):
            raise InputError(f"structural tag: structures[{place}]: {begin!r} begins with none of the triggers")
    return json.dumps({"structures": structures, "triggers": triggers}, ensure_ascii=False)


def write_structural_lark(text: str, vocabulary: GrammarVocabulary, json_options: Mapping[str, Any]) -> str:
    """The Lark of a structural tag that was checked. Names of control tokens in its texts stand for the tokens."""
    tag = json.loads(text)
    lines = ["%llguidance {}", "", f"TEXT: {_TEXT}", "tail: TEXT"]
    for number, each in enumerate(tag["structures"]):
        trigger = next(trigger for trigger in tag["triggers"] if trigger and each["begin"].startswith(trigger))
        body = [
            *_parts(each["begin"][len(trigger) :], vocabulary),
            "%json " + json.dumps({"x-guidance": json_options, **each.get("schema", {})}, ensure_ascii=False),
            *_parts(each.get("end", ""), vocabulary),
        ]
        head = _parts(trigger, vocabulary)
        if len(head) == 1 and head[0].startswith('"'):  # a text, at the first of which the free text ends
            lines.append(f"head_{number}[lazy]: TEXT {head[0]}")
            head = [f"head_{number}"]
        else:
            head.insert(0, "TEXT")
        lines.append(f"tag_{number}: {' '.join(head + body)}")
    lines[1] = f"start: ({' | '.join(f'tag_{number}' for number in range(len(tag['structures'])))})* tail"
    return "\n".join(lines) + "\n"


def _parts(text: str, vocabulary: GrammarVocabulary) -> list[str]:
    """A text in Lark: its control tokens by their ids, and between them literals."""
    names = [name for name in vocabulary.tokenizer.control_texts if name in text]
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
    found = []
    for part in filter(None, parts):
        if part in names:
            (id,) = vocabulary.tokenizer.encode(part, add_special=False, parse_special=True)
            found.append(f"<[{id}]>")
        else:
            found.append(json.dumps(part, ensure_ascii=False))
    return found
