"""The model with which the chat is tested: it repeats a character, and needs no sampling."""

from pathlib import Path

from lltool.gguf.metadata import Value, string, u32
from tests.eval.tiny_text_model import write_text_model

CONTEXT = 8192
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}8{% endif %}"
EXACT = ["--temp", "0", "--precision", "f32", "-t", "1"]


def write_repeating(path: Path, **changes: Value) -> str:
    """Writes a model that repeats the last character of its prompt without an end; returns its path."""
    keys = {"gemma3.context_length": u32(CONTEXT), "tokenizer.chat_template": string(TEMPLATE)}
    return str(write_text_model(path, repeats=True, **(keys | changes)))
