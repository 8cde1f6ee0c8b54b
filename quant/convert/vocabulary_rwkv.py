"""RWKV's vocabulary ("rwkv" in GGUF), from rwkv_vocab_v20230424.txt: any bytes, matched longest first.

Each line has an id, a token as a Python literal of text or bytes, and its length in bytes. Form of the tokens, and the
tokens that end a text, as in llama.cpp's converter.
"""

import ast
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.gguf.metadata import boolean, u32
from lltool.gguf.regular_file import read_bytes
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.vocabulary_table import MAX_TOKENS, Vocabulary


def find_rwkv(path: Path) -> Path | None:
    """The vocabulary in folder `path`."""
    return next(iter(sorted(path.glob("rwkv_vocab_v*.txt"))), None)


def read_rwkv_vocabulary(file: Path) -> Vocabulary:
    """Raises InputError, naming the line, for a line of another form."""
    try:
        lines = read_bytes(file).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text: {error}") from None
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(lines, 1):
        id, _, rest = line.partition(" ")
        literal, _, size = rest.rpartition(" ")
        try:
            token = ast.literal_eval(literal)
            data = token.encode() if isinstance(token, str) else token
            is_right = isinstance(data, bytes) and len(data) == int(size) and 0 < int(id) < MAX_TOKENS
        except (ValueError, SyntaxError, MemoryError):
            is_right = False
        if not is_right:
            raise InputError(f"{file}, line {number}: {line!r:.80}, wanted an id, a token as a literal, and its length")
        tokens[int(id)] = data
    if not tokens:
        raise InputError(f"{file}: has no token")
    size_of_table = max(tokens) + 1
    texts = [escape(tokens[id]) if id in tokens else f"[PAD{id}]" for id in range(size_of_table)]
    types = [int(TokenType.NORMAL if id in tokens else TokenType.UNUSED) for id in range(size_of_table)]
    texts[0], types[0] = "<s>", int(TokenType.CONTROL)
    vocabulary = Vocabulary("rwkv", texts, types)
    vocabulary.keys |= {"bos_token_id": u32(0), "eos_token_id": u32(0), "add_bos_token": boolean(False)}
    paragraph = next((id for id, data in tokens.items() if data == b"\n\n"), None)
    if paragraph is not None:
        vocabulary.keys["eot_token_id"] = u32(paragraph)
    return vocabulary


def escape(data: bytes) -> str:
    """The text of a token in GGUF: a Python literal of bytes without its quotes."""
    return repr(data)[2:-1]
