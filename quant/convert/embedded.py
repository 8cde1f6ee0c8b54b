"""A tokenizer.json without what the keys of a GGUF file say: its added tokens, and the tokens around a text."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def plain_tokenizer(text: str | bytes, *, puts_spaces: bool = True) -> "Tokenizer":
    """The tokenizer of a tokenizer.json, which encodes texts between added tokens.

    Without `puts_spaces`, its Metaspace step puts no space before a text. Raises ValueError for any other text.
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
    return Tokenizer.from_buffer(json.dumps(content).encode())
