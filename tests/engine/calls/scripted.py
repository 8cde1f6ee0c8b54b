"""A tiny model that says what a test wants, so that all of a server but the choice of tokens is real."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine import generate
from lltool.engine.request import Request
from lltool.gguf.metadata import Value, ValueType, array, string, u32
from lltool.quant.convert.sentencepiece_model import TokenType
from tests.engine import tiny_gguf

ENDS = ("<|im_end|>",)
CONTROLS = (
    "<s>",
    *ENDS,
    "<|im_start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|start|>",
    "<|return|>",
    "[TOOL_CALLS]",
)


def letters() -> list[str]:
    """The characters that stand for the 256 bytes in a byte-level vocabulary, as GPT-2 has them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def bytes_vocabulary() -> dict[str, Value]:
    """A token for each byte, whose id is the byte, a user-defined `<tool_call>`, and `CONTROLS`."""
    tokens = [*letters(), "<tool_call>", *CONTROLS]
    kinds = [TokenType.NORMAL] * 256 + [TokenType.USER_DEFINED] + [TokenType.CONTROL] * len(CONTROLS)
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, np.array(kinds, np.int32)),
        "tokenizer.ggml.merges": array(ValueType.STRING, []),
        "tokenizer.ggml.bos_token_id": u32(tokens.index("<s>")),
        "tokenizer.ggml.eos_token_id": u32(tokens.index("<|im_end|>")),
    }


def write_bytes_model(path: Path, template: str, *, context: int = 8192) -> Path:
    """A random model with the vocabulary of bytes."""
    keys = {
        **tiny_gguf.metadata(context_length=u32(context)),
        **bytes_vocabulary(),
        "tokenizer.chat_template": string(template),
    }
    weights = tiny_gguf.tensors()
    random = np.random.default_rng(0)
    shape = (257 + len(CONTROLS), tiny_gguf.WIDTH)
    weights["token_embd.weight"] = (random.normal(size=shape) / tiny_gguf.WIDTH**0.5).astype(np.float32)
    return tiny_gguf.write_model(path, keys, weights)


@contextmanager
def saying(answers: Sequence[str], tokenizer: Any) -> Iterator[None]:
    """The requests that begin within the block generate these answers, one after another, and then end.

    What a constraint refuses is an error: the grammar must admit what the model was scripted to say.
    """
    waiting = [[*tokenizer.encode(text, add_special=False, parse_special=True), tokenizer.eos] for text in answers]
    scripts: dict[Request, list[int]] = {}

    def choose(model: Any, batch: Sequence[Request], block: Any) -> list[int]:
        found = []
        for request in batch:
            script = scripts.get(request) or scripts.setdefault(request, waiting.pop(0))
            place = len(request.ids) - request.prompt_tokens
            token = script[place] if place < len(script) else tokenizer.eos
            mask = request.allowed
            if mask is not None and not int(mask[token // 32]) >> token % 32 & 1:
                said = tokenizer.decode(request.ids[-place:] if place else [], special=True)
                raise AssertionError(f"the grammar refuses {tokenizer.tokens[token]!r} after {said!r}")
            found.append(token)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "_choose", choose)
        yield
