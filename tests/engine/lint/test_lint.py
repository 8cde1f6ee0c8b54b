"""Faults are planted in a sound model; each is found, and its cure, applied as `lltool set` does, works."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.lint.check import lint
from lltool.engine.lint.finding import Finding
from lltool.gguf.edit import Changes, edit_gguf, removal
from lltool.gguf.file_types import FileType
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType, array, boolean, string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant.convert.sentencepiece_model import TokenType
from lltool.quant.convert.vocabulary import read_vocabulary
from lltool.quant.edits import parse_setting
from tests.engine.tiny_gguf import metadata, tensors, write_model
from tests.tokenizer_kinds import save, unigram, wordpiece

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # those that byte-level vocabularies show as themselves
LETTERS = [*map(chr, BYTES), *(chr(256 + i) for i in range(256 - len(BYTES)))]
SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>", "<done>"]
VOCAB = len(LETTERS) + len(SPECIAL)
START, END, DONE = VOCAB - 3, VOCAB - 2, VOCAB - 1
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAME = "tokenizer.ggml."
Weights = dict[str, Any]
Keys = dict[str, Value]


def sound() -> tuple[Keys, Weights]:
    weights: Weights = dict(tensors())
    rows = np.random.default_rng(1).standard_normal((VOCAB, 32)).astype(np.float32)
    weights["token_embd.weight"] = rows
    types = np.array([TokenType.NORMAL] * len(LETTERS) + [TokenType.CONTROL] * len(SPECIAL), np.int32)
    keys = {
        **metadata(),
        "general.file_type": u32(FileType.F32),
        f"{NAME}model": string("gpt2"),
        f"{NAME}pre": string("gpt-2"),
        f"{NAME}tokens": array(ValueType.STRING, [*LETTERS, *SPECIAL]),
        f"{NAME}token_type": array(ValueType.INT32, types),
        f"{NAME}merges": array(ValueType.STRING, []),
        f"{NAME}bos_token_id": u32(VOCAB - 4),
        f"{NAME}eos_token_id": u32(END),
        "tokenizer.chat_template": string(TEMPLATE),
    }
    return keys, weights


def findings(path: Path) -> list[Finding]:
    with open_gguf(path) as file:
        return lint(file)


def test_a_sound_model_has_no_findings(tmp_path: Path) -> None:
    assert findings(write_model(tmp_path / "m.gguf", *sound())) == []


def rwkv(folder: Path) -> None:
    lines = [f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)]
    (folder / "rwkv_vocab_v20230424.txt").write_text("".join(lines))


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("bert", lambda folder: save(wordpiece(), folder)),
        ("t5", lambda folder: save(unigram("t5"), folder)),
        ("t5", lambda folder: save(unigram("albert"), folder)),  # embedded whole
        ("rwkv", rwkv),
    ],
)
def test_every_kind_of_vocabulary_is_sound(kind: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    """The model is no chat model, which a note says; nothing else is found."""
    write(tmp_path)
    vocabulary = read_vocabulary(tmp_path, {}, 1600).metadata()
    assert vocabulary[f"{NAME}model"].data == kind
    keys, weights = sound()
    keys = {name: value for name, value in keys.items() if not name.startswith("tokenizer.")} | vocabulary
    weights["token_embd.weight"] = np.random.default_rng(1).standard_normal((1600, 32)).astype(np.float32)
    found = findings(write_model(tmp_path / "m.gguf", keys, weights))
    assert [(finding.severity, finding.found) for finding in found] == [("note", "the file has no chat template")]


def key(name: str, value: Value | None) -> Callable[[Keys, Weights], None]:
    def plant(keys: Keys, weights: Weights) -> None:
        keys.pop(name, None)
        if value is not None:
            keys[name] = value

    return plant


def weight(name: str, change: Callable[[Any], Any]) -> Callable[[Keys, Weights], None]:
    def plant(keys: Keys, weights: Weights) -> None:
        weights[name] = change(weights[name])

    return plant


def both(*plants: Callable[[Keys, Weights], None]) -> Callable[[Keys, Weights], None]:
    def plant(keys: Keys, weights: Weights) -> None:
        for one in plants:
            one(keys, weights)

    return plant


def with_nan(values: Any) -> Any:
    values[3, 5] = np.nan
    return values


YARN = both(
    key("gemma3.rope.scaling.type", string("yarn")),
    key("gemma3.rope.scaling.factor", Value(ValueType.FLOAT32, 4.0)),
)
FAULTS: dict[str, tuple[Callable[[Keys, Weights], None], str, str, bool]] = {
    # the fault, the severity, a part of what is found, whether there is a cure
    "wrong end": (key(f"{NAME}eos_token_id", u32(VOCAB - 4)), "warning", f"token {END}, '<|im_end|>', but", True),
    "unknown end": (
        key("tokenizer.chat_template", string(TEMPLATE.replace("<|im_end|>", "<done>"))),
        "error",
        f"token {DONE}, '<done>', which does not end generation; tokenizer.ggml.eos_token_id is {END}",
        True,
    ),
    "no end": (key(f"{NAME}eos_token_id", None), "warning", "but tokenizer.ggml.eos_token_id is missing", True),
    "template without an end": (
        key("tokenizer.chat_template", string(TEMPLATE.replace("<|im_end|>", "</|im_end|>"))),
        "warning",
        r"ends an answer with '</|im_end|>\n', which has no control token",
        False,
    ),
    "template that ignores the prompt": (
        key("tokenizer.chat_template", string(TEMPLATE.replace("if add_gen", "if false and add_gen"))),
        "warning",
        "does not begin the assistant's turn",
        False,
    ),
    "template that drops the question": (
        key("tokenizer.chat_template", string(TEMPLATE.replace("m['content']", "m['text']"))),
        "error",
        "leaves out what the user says",
        False,
    ),
    "template that fails": (
        key("tokenizer.chat_template", string("{{ raise_exception('no') }}")),
        "error",
        "no",
        False,
    ),
    "broken template": (key("tokenizer.chat_template", string("{% for %}")), "error", "line 1", False),
    "no template": (key("tokenizer.chat_template", None), "note", "no chat template", False),
    "id out of range": (
        key(f"{NAME}padding_token_id", u32(VOCAB)),
        "error",
        f"padding_token_id is {VOCAB}, but there are {VOCAB} tokens",
        True,
    ),
    "id of another type": (key(f"{NAME}unknown_token_id", string("0")), "error", "is of type string", True),
    "ordinary begin": (key(f"{NAME}bos_token_id", u32(1)), "warning", "which is ordinary text", False),
    "begin that is missing": (
        both(key(f"{NAME}bos_token_id", None), key(f"{NAME}add_bos_token", boolean(True))),
        "error",
        "there is no begin token",
        True,
    ),
    "vocabulary too long": (
        weight("token_embd.weight", lambda values: values[:-1].copy()),
        "error",
        f"{VOCAB} tokens, but token_embd.weight has {VOCAB - 1} rows",
        False,
    ),
    "vocabulary size": (key("gemma3.vocab_size", u32(9)), "warning", "gemma3.vocab_size is 9", True),
    "token types": (
        key(f"{NAME}token_type", array(ValueType.INT32, [1, 2])),
        "error",
        f"2 values for {VOCAB} tokens",
        False,
    ),
    "byte without a token": (
        key(f"{NAME}tokens", array(ValueType.STRING, ["?!" if t == "e" else t for t in [*LETTERS, *SPECIAL]])),
        "error",
        "when encoded and decoded",
        False,
    ),
    "no tokenizer": (key(f"{NAME}model", None), "warning", "no tokenizer", False),
    "NaN": (
        weight("blk.1.ffn_up.weight", with_nan),
        "error",
        "blk.1.ffn_up.weight has 1 weights that are NaN or infinite, the first in row 3",
        False,
    ),
    "infinite norm": (
        weight("blk.0.ffn_norm.weight", lambda values: values * np.float32(np.inf)),
        "error",
        "blk.0.ffn_norm.weight has 32 weights",
        False,
    ),
    "zeros": (
        weight("blk.2.attn_v.weight", np.zeros_like),
        "warning",
        "blk.2.attn_v.weight is all zeros",
        False,
    ),
    "huge": (
        weight("blk.2.attn_v.weight", lambda values: values * np.float32(1e7)),
        "warning",
        "blk.2.attn_v.weight has a weight of",
        False,
    ),
    "missing tensor": (lambda keys, weights: weights.pop("blk.1.attn_q.weight"), "error", "blk.1.attn_q.weight", False),
    "unused tensor": (
        lambda keys, weights: weights.update({"blk.9.attn_q.weight": np.ones((2, 2), np.float32)}),
        "error",
        "blk.9.attn_q.weight",
        False,
    ),
    "unknown key": (key("gemma3.made_up", u32(1)), "error", "gemma3.made_up", False),
    "architecture": (key("general.architecture", string("gemma3x")), "note", "'gemma3x' is not known", False),
    "no tensors": (lambda keys, weights: weights.clear(), "note", "the file has no tensors", False),
    "no context": (key("gemma3.context_length", None), "warning", "gemma3.context_length is missing", False),
    "context beyond the scaling": (
        both(YARN, key("gemma3.rope.scaling.original_context_length", u32(64))),
        "warning",
        "gemma3.context_length is 512, but the scaling of positions reaches 256: 64 times 4",
        True,
    ),
    "scaling without its origin": (YARN, "warning", "original_context_length is missing", True),
    "scaling for another context": (
        both(YARN, key("gemma3.rope.scaling.original_context_length", u32(1024))),
        "warning",
        "original_context_length is 1024, more than the context of 512",
        False,
    ),
    "scaling of no type": (
        both(YARN, key("gemma3.rope.scaling.type", string("none"))),
        "warning",
        "type is none, but gemma3.rope.scaling.factor is 4",
        False,
    ),
    "wrong file type": (
        key("general.file_type", u32(FileType.Q4_K_M)),
        "warning",
        "says Q4_K_M, but no matrix is Q4_K; most weights are F32",
        True,
    ),
    "unknown file type": (key("general.file_type", u32(999)), "warning", "is 999, which is no known type", True),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_cured(name: str, tmp_path: Path) -> None:
    plant, severity, part, has_cure = FAULTS[name]
    keys, weights = sound()
    plant(keys, weights)
    path = write_model(tmp_path / "m.gguf", keys, weights)
    found = findings(path)
    matching = [finding for finding in found if part in finding.found and finding.severity == severity]
    assert len(matching) == 1, found
    assert bool(matching[0].cure) == has_cure
    if not has_cure:
        return

    def cure(metadata: Any) -> Changes:
        match matching[0].cure:
            case ("--remove", gone):
                return dict([removal(path, metadata, gone)])
            case (setting,):
                return dict([parse_setting(setting, metadata)])
        raise AssertionError(matching[0].cure)

    edit_gguf(path, cure)
    assert not [finding for finding in findings(path) if part in finding.found]


@pytest.mark.parametrize("scale", [0x7E00, 0x7C00], ids=["NaN", "infinite"])
def test_a_scale_that_is_no_number_is_found(scale: int, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 255, (4, 2 * 34), np.uint8)
    rows[:, [0, 1, 34, 35]] = [0, 0x20, 0, 0x20]
    rows[2, 34:36] = [scale & 255, scale >> 8]
    tensor = Tensor("a.weight", GGMLType.Q8_0, (4, 64), lambda start, stop: rows[start:stop])
    path = write_gguf(tmp_path / "m.gguf", Model({"general.architecture": string("x")}, [tensor]))[0]
    (found,) = [finding for finding in findings(path) if finding.check == "values"]
    assert found.severity == "error"
    assert found.found.startswith("tensor a.weight has ")
    assert found.found.endswith("(Q8_0: a block's scale is), the first in row 2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-q4_1", "gemma3-270m-q4_k_m", "qwen25coder-0.5b-q4_k_m"])
def test_real_models_have_no_errors(name: str, real_model: Callable[[str], Path]) -> None:
    assert not [finding for finding in findings(real_model(name)) if finding.severity != "note"]
