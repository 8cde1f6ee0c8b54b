"""A tokenizer.json without what the keys of a GGUF file say: its added tokens, and the tokens around a text."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def plain_tokenizer(text: str | bytes, *, puts_spaces: bool = True) -> "Tokenizer":
    """The tokenizer of a tokenizer.json, which encodes texts between added tokens.

    Without `puts_spaces`, its Metaspace step puts no space before a text. Raises ValueError, TypeError or
    AttributeError for any other text, and for a vocabulary without the token for unknown text that it needs.
    """
    from tokenizers import Tokenizer

    content: Any = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("wanted an object")
    content |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    if not puts_spaces:
        part = content.get("pre_tokenizer") or {}
        for step in part.get("pretokenizers", [part]):
            if step.get("type") == "Metaspace":
                step["prepend_scheme"] = "never"
    tokenizer = Tokenizer.from_buffer(json.dumps(content).encode())
    _check_unknown(content["model"], tokenizer)
    return tokenizer


def _check_unknown(model: dict[str, Any], tokenizer: "Tokenizer") -> None:
    """The library fails in the middle of a text where this token is missing."""
    kind, unknown = type(tokenizer.model).__name__, model.get("unk_token")
    if kind == "Unigram":
        is_missing = model.get("unk_id") is None
    else:
        is_missing = (unknown is not None or kind != "BPE") and tokenizer.token_to_id(str(unknown)) is None
    if is_missing:
        raise ValueError("the vocabulary has no token for unknown text")
