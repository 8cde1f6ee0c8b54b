"""The kinds of vocabularies against libllama, where it loads them.

It is found in the folder that LLAMA_CPP_LIB_PATH names, as for llama-cpp-python, or in an installed llama-cpp-python.
"""

import ctypes
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.text.tokenizer import Tokenizer
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, f32, string, u32
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant.convert.pretokenizers import PRE_TOKENIZERS
from lltool.quant.convert.vocabulary import read_vocabulary
from tests.engine.test_sampling_rival import Options, llama
from tests.tiny_tokenizers import TOKENIZERS
from tests.tokenizer_kinds import byte_tokens, mixed_lines, save, unigram, wordpiece

pytestmark = pytest.mark.rival

__all__ = ["llama"]  # the fixture

WIDTH = 32
NEWEST = ("granite-embed-multi-97m", "jais-2", "kimi-k2", "spark2_5", "ufakzeka", "youtu")
"""Pre-tokenizers that older versions of libllama do not know."""


class Rival:
    """libllama's tokenizer of a vocabulary, in the smallest model that it loads."""

    def __init__(self, llama: ctypes.CDLL, model: int) -> None:
        llama.llama_model_get_vocab.restype = ctypes.c_void_p
        self._llama, self.vocabulary = llama, ctypes.c_void_p(llama.llama_model_get_vocab(ctypes.c_void_p(model)))

    @classmethod
    def load(cls, llama: ctypes.CDLL, path: Path, vocabulary: Mapping[str, Value]) -> "Rival | None":
        """Writes the model to `path`; None if the library refuses it."""
        rows = len(vocabulary["tokenizer.ggml.tokens"].data)
        numbers = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
        metadata = {
            "general.architecture": string("llama"),
            **{f"llama.{key}": u32(value) for key, value in zip(numbers, (64, WIDTH, 1, WIDTH, 1), strict=True)},
            "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
            **vocabulary,
        }
        block = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        shapes = {
            "token_embd": (rows, WIDTH),
            "output_norm": (WIDTH,),
            **{f"blk.0.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")},
            **{f"blk.0.{name}": (WIDTH, WIDTH) for name in block},
        }
        tensors = [_ones(f"{name}.weight", shape) for name, shape in shapes.items()]
        write_gguf(path, Model(metadata, tensors))
        llama.llama_model_default_params.restype = Options
        llama.llama_model_load_from_file.restype = ctypes.c_void_p
        model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        return cls(llama, model) if model else None

    def is_end(self, id: int) -> bool:
        self._llama.llama_vocab_is_eog.restype = ctypes.c_bool
        return bool(self._llama.llama_vocab_is_eog(self.vocabulary, ctypes.c_int32(id)))

    def fill_in_middle(self) -> dict[str, int]:
        found = {}
        for name in ("pre", "suf", "mid", "pad", "rep", "sep"):
            id = getattr(self._llama, f"llama_vocab_fim_{name}")(self.vocabulary)
            if id >= 0:
                found[name] = id
        return found

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        size = ctypes.c_int32(len(data))
        count = self._llama.llama_tokenize(self.vocabulary, data, size, ids, len(ids), add_special, True)
        assert count >= 0
        return list(ids[:count])


def _ones(name: str, shape: tuple[int, ...]) -> Tensor:
    data = np.ones(shape, np.float32).reshape(-1, WIDTH).view(np.uint8)
    return Tensor(name, GGMLType.F32, shape, lambda start, stop: data[start:stop])


def rival_of(llama: ctypes.CDLL, folder: Path, rows: int, model_type: str | None = None) -> tuple[Rival, Tokenizer]:
    vocabulary = read_vocabulary(folder, {"model_type": model_type} if model_type else {}, rows).metadata()
    rival = Rival.load(llama, folder / "model.gguf", vocabulary)
    assert rival, "libllama refuses the file"
    return rival, Tokenizer.from_gguf(vocabulary)


def differences(rival: Rival, tokenizer: Tokenizer, lines: list[str]) -> list[str]:
    """The lines of which the two make other ids."""
    pairs = ((line, tokenizer.encode(line, add_special=False, parse_special=True)) for line in lines)
    return [line for line, ids in pairs if rival.encode(line, add_special=False) != ids]


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece(llama: ctypes.CDLL, lowercase: bool, tmp_path: Path) -> None:
    save(wordpiece(lowercase=lowercase), tmp_path)
    rival, tokenizer = rival_of(llama, tmp_path, 1500)
    lines = mixed_lines(2000)
    if lowercase:  # libllama strips spacing vowel signs with the accents, BERT does not
        lines = [line for line in lines if not any(unicodedata.category(char) == "Mc" for char in line)]
    assert rival.encode("a word") == tokenizer.encode("a word")
    assert differences(rival, tokenizer, lines) == []


@pytest.mark.parametrize("form", ["t5", "old"])
def test_unigram(llama: ctypes.CDLL, form: str, tmp_path: Path) -> None:
    wanted = unigram(form)
    save(wanted, tmp_path)
    rival, tokenizer = rival_of(llama, tmp_path, wanted.get_vocab_size())
    assert rival.encode("a word") == tokenizer.encode("a word")
    lines = [line.replace("\x85", "") for line in mixed_lines(2000)]  # no white space to libllama
    # libllama composes decomposed Hangul and Kana, which `tokenizers` leaves as they are.
    lines = [line for line in lines if not re.search("[\u1100-\u11ff\u3099]", line)]
    assert differences(rival, tokenizer, lines) == []


@pytest.mark.parametrize(
    "names",
    [
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
        ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<reponame>", "<|im_end|>"],
        ["<|end|>", "<|return|>", "<|call|>", "<|eom_id|>", "[EOS]", "<end_of_utterance>"],
        ["<|end|>", "<|eot_id|>", "<turn|>", "<|tool_response>", "[e~[", "<eos>"],
    ],
)
def test_ends_and_fill_in_middle_tokens(llama: ctypes.CDLL, names: list[str], tmp_path: Path) -> None:
    config = TOKENIZERS["qwen2"](tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    new = [name for name in names if name not in {row["content"] for row in content["added_tokens"]}]
    content["added_tokens"] += [{"id": 374 + i, "content": t, "special": True, **flags} for i, t in enumerate(new)]
    path.write_text(json.dumps(content))
    vocabulary = read_vocabulary(tmp_path, config, 384).metadata()
    rival, tokenizer = Rival.load(llama, tmp_path / "model.gguf", vocabulary), Tokenizer.from_gguf(vocabulary)
    assert rival
    assert dict(tokenizer.fill_in_middle) == rival.fill_in_middle()
    assert tokenizer.end_of_generation == {id for id in range(tokenizer.size) if rival.is_end(id)}


def test_rwkv(llama: ctypes.CDLL, tmp_path: Path) -> None:
    tokens = [*(bytes([i]) for i in range(256)), *byte_tokens()[256:]]
    lines = [f"{id} {token!r} {len(token)}\n" for id, token in enumerate(tokens, 1)]
    (tmp_path / "rwkv_vocab_v20230424.txt").write_text("".join(lines))
    rival, tokenizer = rival_of(llama, tmp_path, len(tokens) + 1)
    lines = [line for line in mixed_lines(2000) if "\0" not in line]  # where libllama's tokens end
    assert differences(rival, tokenizer, lines) == []


def test_pre_tokenizers(llama: ctypes.CDLL, tmp_path: Path) -> None:
    """One name for each way to split texts, of those that the library's version knows."""
    lines = [line for line in mixed_lines(600) if not re.search("[\0\x85]", line)]  # U+0085: no white space to libllama
    vocabulary = read_vocabulary(tmp_path, TOKENIZERS["qwen2"](tmp_path), 384).metadata()
    unique = {(type.patterns, type.ignore_merges): name for name, type in reversed(PRE_TOKENIZERS.items())}
    for name in unique.values():
        if name == "tiny_aya":
            continue  # libllama finds the end of a word (its \b) elsewhere than the library of the checkpoints does
        keys = vocabulary | {"tokenizer.ggml.pre": string(name)}
        rival = Rival.load(llama, tmp_path / f"{name}.gguf", keys)
        assert rival or name in NEWEST, f"libllama refuses {name}"
        if rival:
            assert differences(rival, Tokenizer.from_gguf(keys), lines) == [], name
