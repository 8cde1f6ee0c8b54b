"""Digests that identify the code and the vocabulary behind a result."""

import hashlib
from functools import cache
from pathlib import Path

from lltool import __version__
from lltool.engine.text.tokenizer import Tokenizer


@cache
def tool_digest() -> str:
    """A digest of this package's version and sources; results with the same digest were made by the same code."""
    digest = hashlib.sha256(__version__.encode())
    package = Path(__file__).resolve().parents[2]
    for folder in ("gguf", "quant", "engine", "eval", "tools"):
        for path in sorted((package / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp"):
                digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def vocabulary_sha256(tokenizer: Tokenizer) -> str:
    """A digest of the tokens in the order of their ids; models with the same digest can be compared token by token."""
    return hashlib.sha256("\0".join(tokenizer.tokens).encode("utf-8", "surrogateescape")).hexdigest()
