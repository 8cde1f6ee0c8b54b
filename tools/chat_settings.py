"""The settings of a conversation by name, as `/set` of `lltool chat` shows and changes them."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lltool.engine.sampling_settings import (
    OTHER_NAMES,
    SamplingSettings,
    parse_setting,
    show_setting_value,
)
from lltool.engine.sampling_settings import SETTINGS as SAMPLING
from lltool.gguf.errors import InputError
from lltool.gguf.text_file import decode_argument
from lltool.tools.chat_input import unquoted

if TYPE_CHECKING:
    from lltool.engine.conversation import Conversation

SETTINGS: Mapping[str, str] = {
    **{name: about.help for name, about in SAMPLING.items()},
    "max_tokens": "of an answer; -1: no limit",
    "stop": 'the text at which an answer ends; "": none',
    "system": 'the system message; "": none',
}
"""The names of the settings, and what they mean."""

_USUAL = ("temperature", "top_k", "top_p", "min_p", "seed", "max_tokens", "stop", "system")
_ALIASES = {**OTHER_NAMES, "n": "max_tokens", "predict": "max_tokens", "num_predict": "max_tokens"}


def settings_to_show(conversation: "Conversation") -> list[str]:
    """The usual settings, and the others that are not at their defaults."""
    defaults = SamplingSettings()
    return [
        name for name in SETTINGS if name in _USUAL or getattr(conversation.sampler, name) != getattr(defaults, name)
    ]


def find_setting(name: str) -> str:
    """The setting that a name means, in the spelling of llama.cpp and Ollama too. Raises InputError for others."""
    plain = name.lower().lstrip("-").replace("-", "_")
    plain = _ALIASES.get(plain, plain)
    if plain in SETTINGS:
        return plain
    close = get_close_matches(plain, SETTINGS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"wanted {', '.join(SETTINGS)}"
    raise InputError(f"no setting {name!r}; {hint}")


def show_setting(conversation: "Conversation", name: str) -> str:
    match name:
        case "max_tokens":
            return "no limit" if conversation.max_tokens is None else str(conversation.max_tokens)
        case "stop":
            return " or ".join(map(repr, conversation.stop)) or "none"
        case "system":
            return conversation.system or "none"
    return show_setting_value(name, getattr(conversation.sampler, name))


def change_setting(conversation: "Conversation", name: str, text: str) -> None:
    """Sets what `find_setting` has found. Raises InputError, and changes nothing, if `text` is no value of it."""
    if name in ("system", "stop"):
        text = "" if text == '""' else unquoted(text)
        if name == "system":
            conversation.system = text
        else:
            conversation.stop = [decode_argument(text, "stop", escapes=True)] if text else []
        return
    if name == "max_tokens":
        try:
            value = int(text)
        except ValueError:
            raise InputError(f"max_tokens {text!r}, wanted a whole number ({SETTINGS[name]})") from None
        if value < -1:
            raise InputError(f"max_tokens {value}, wanted a number of tokens, or -1 for no limit")
        conversation.max_tokens = None if value == -1 else value
    else:
        is_text = SAMPLING[name].kind == "texts"
        changes: dict[str, Any] = {name: parse_setting(name, unquoted(text) if is_text else text)}
        sampler = replace(conversation.sampler, **changes)
        sampler.use(conversation.model.tokenizer)
        conversation.sampler = sampler
