"""A tiny random model whose vocabulary is the printable ASCII characters and the line end, a token each."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.metadata import Value, ValueType, array, string, u32
from tests.engine.tiny_gguf import VOCAB, metadata, tensors, write_model

TOKENS = ["Ġ", *map(chr, range(33, 127)), "Ċ"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"


def write_text_model(path: Path, *, seed: int = 0, broken: str = "", repeats: bool = False, **keys: Value) -> Path:
    """The tokens of `broken` have embeddings that are not numbers, as an overflow in a layer would give.

    With `repeats`, the layers add nothing, so that the likeliest token is the last one again, without an end.
    """
    assert len(TOKENS) == VOCAB
    weights: dict[str, NDArray[Any]] = dict(tensors(seed))
    for character in broken:
        weights["token_embd.weight"][TOKENS.index(character)] = np.nan
    if repeats:
        for name in weights:
            if name.endswith(("attn_output.weight", "ffn_down.weight")):
                weights[name] = np.zeros_like(weights[name])
    vocabulary = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, TOKENS),
        "tokenizer.ggml.token_type": array(ValueType.INT32, np.ones(VOCAB, np.int32)),
        "tokenizer.ggml.merges": array(ValueType.STRING, []),
        "tokenizer.ggml.eos_token_id": u32(VOCAB - 1),
        "tokenizer.chat_template": string(TEMPLATE),
    }
    return write_model(path, {**metadata(), **vocabulary, **keys}, weights)


def random_text(length: int, seed: int = 0, without: str = "") -> str:
    characters = [chr(code) for code in range(32, 127) if chr(code) not in without]
    return "".join(np.random.default_rng(seed).choice(characters, length))
