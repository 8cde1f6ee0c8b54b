"""What a result was made of and measured on."""

import hashlib
from functools import cache
from pathlib import Path

from lltool import __version__
from lltool.engine.tokenizer import Tokenizer


@cache
def tool_digest() -> str:
    """A digest of this package's version and sources: results of one digest were made by the same code."""
    digest = hashlib.sha256(__version__.encode())
    package = Path(__file__).resolve().parent.parent
    for folder in ("gguf", "quant", "engine", "eval", "tools"):
        for path in sorted((package / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp"):
                digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def vocabulary_sha256(tokenizer: Tokenizer) -> str:
    """A digest of which token has which id: models of one digest can be held against each other token by token."""
    return hashlib.sha256("\0".join(tokenizer.tokens).encode("utf-8", "surrogateescape")).hexdigest()
