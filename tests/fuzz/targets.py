"""What is fuzzed: each target takes any bytes, and may answer with an InputError and with nothing else.

A target's seeds are small valid inputs, made on the spot, that the fuzzer starts from.
"""

import hashlib
import json
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lltool.engine.config import ModelConfig
from lltool.engine.model import load_model
from lltool.engine.models.architectures import trace_program
from lltool.engine.program import Weight
from lltool.engine.state_file import StateFile, save_state
from lltool.engine.text.chat import ChatTemplate
from lltool.engine.text.tokenizer import Tokenizer
from lltool.engine.traits import ARCHITECTURES
from lltool.eval.divergence.logits_file import open_logits_file
from lltool.eval.divergence.reference_file import FORMAT, VERSION, open_reference
from lltool.eval.scoring.lockstep import scored_tokens
from lltool.gguf.describe import describe_file, plain_value
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.gguf.metadata import Value, ValueType, array, string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model
from lltool.quant import isa
from lltool.quant.choose import choose_types
from lltool.quant.codec import ENCODED, NEEDS_IMPORTANCE, BadWeights, decode, encode
from lltool.quant.convert.conversion import plan_conversion
from lltool.quant.convert.safetensors import open_safetensors
from lltool.quant.importance import read_importance, write_dat, write_importance
from lltool.quant.quantize import quantize_file
from lltool.quant.recipes import RECIPES
from tests.engine import tiny_gguf
from tests.fuzz.choices import Choices

JUNK: Sequence[Any] = (None, True, -1, 0, 2**70, 1.5, float("nan"), "text", [], [1], ["x", None], {}, {"a": {"b": 1}})


@dataclass(frozen=True)
class Target:
    """`run` raises for a fault of lltool's. `seeds` gives the inputs to begin with, the folder is for files.

    `inputs` is the number of inputs of a short run, which takes a few seconds.
    """

    run: Callable[[bytes, Path], None]
    seeds: Callable[[Path], Sequence[bytes]]
    inputs: int


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], None]:
    """A target that reads a file of the input's bytes."""

    def run(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        read(path)

    return run


@cache
def _model_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        keys = tiny_gguf.metadata() | {f"tokenizer.ggml.{k}": v for k, v in TOKENIZER.items()}
        tiny_gguf.write_model(path, keys | {"nested": _NESTED}, tiny_gguf.tensors())
        return path.read_bytes()


_NESTED = array(ValueType.ARRAY, (array(ValueType.INT8, np.ones(2, np.int8)), array(ValueType.STRING, ["a", "b"])))
TOKENIZER: dict[str, Value] = {
    "model": string("gpt2"),
    "pre": string("gpt-2"),
    "tokens": array(ValueType.STRING, [*(chr(0x21 + i) for i in range(90)), "ab", "abc", "Ġa", "<s>", "</s>", "Ġ"]),
    "token_type": array(ValueType.INT32, np.array([1] * 93 + [3, 3, 1], np.int32)),
    "merges": array(ValueType.STRING, ["a b", "ab c", "Ġ a"]),
    "eos_token_id": u32(94),
}


def read_header(path: Path) -> None:
    with open_gguf(path) as file:
        for value in file.metadata.values():
            plain_value(value)
        describe_file(file)


def run_tensors(data: bytes, folder: Path) -> None:
    """Damage behind the header: the model runs or says what is wrong with its weights."""
    choices, whole = Choices(data), bytearray(_model_bytes())
    for _ in range(choices.number(0, 4)):
        place = choices.number(len(whole) // 2, len(whole) - 8)
        whole[place : place + 4] = choices.bytes(4)
    path = folder / "m.gguf"
    path.write_bytes(whole)
    type = choices.one_of(("Q4_0", "Q8_0", "F16"))
    with load_model(path, context=64, threads=1) as model:
        model.evaluate(model.new_sequence(), [choices.number(0, 95) for _ in range(choices.number(1, 40))])
    quantize_file(path, folder / "q.gguf", type, threads=1)


def run_codec(data: bytes, folder: Path) -> None:
    """Any bytes decode, any floats encode or are refused, in every type."""
    choices = Choices(data)
    type = choices.one_of(sorted(LAYOUT))
    layout, rows = LAYOUT[type], choices.number(1, 3)
    blocks = choices.number(1, 4)
    columns, raw = blocks * layout.block, choices.bytes(rows * blocks * layout.bytes)
    values = decode(np.frombuffer(raw, np.uint8).reshape(rows, -1), type)
    assert values.shape == (rows, columns)
    if type in ENCODED:
        weights = np.frombuffer(choices.bytes(rows * columns * 4), np.float32).reshape(rows, columns)
        importance = np.frombuffer(choices.bytes(columns * 4), np.float32)
        importance = np.abs(np.nan_to_num(importance, posinf=1.0, neginf=1.0)).clip(0, 1e10)
        try:
            made = encode(weights, type, importance if type in NEEDS_IMPORTANCE or choices.number(0, 1) else None)
        except BadWeights:
            return
        assert made.shape == (rows, blocks * layout.bytes)


def _value(choices: Choices) -> Value:
    kind = choices.number(0, 7)
    if kind == 0:
        return Value(ValueType.INT64, choices.integer())
    if kind == 1:
        return u32(choices.number(0, 130))
    if kind == 2:
        return Value(ValueType.FLOAT64, choices.floating())
    if kind == 3:
        return Value(ValueType.BOOL, bool(choices.number(0, 1)))
    if kind == 4:
        return string(choices.one_of(("llama", "yarn", "linear", "gpt2", "qwen2", "")) or choices.text(12))
    if kind == 5:
        return array(ValueType.STRING, [choices.text(6) for _ in range(choices.number(0, 5))])
    if kind == 6:
        numbers = [choices.integer() % 2**31 for _ in range(choices.number(0, 5))]
        return array(ValueType.INT32, np.array(numbers, np.int32))
    return _NESTED


def run_config(data: bytes, folder: Path) -> None:
    """The keys of an architecture: the engine traces a program and quantizing chooses types, or both refuse."""
    choices = Choices(data)
    keys = tiny_gguf.metadata(choices.one_of(sorted(ARCHITECTURES)))
    names = [*keys, *(f"gemma3.rope.scaling.{n}" for n in ("type", "factor", "yarn_beta_fast", "attn_factor"))]
    names += ["gemma3.rope.freq_base", "gemma3.attention.scale", "gemma3.rope.dimension_count"]
    while not choices.is_spent:
        keys[choices.one_of(names)] = _value(choices)
    weights = {
        name: Weight(name, GGMLType.F32, values.shape, values.view(np.uint8).reshape(-1, values.shape[-1] * 4))
        for name, values in _tiny_tensors().items()
    }
    with open_gguf(_model_file(folder)) as file:
        refusal = None
        for work in (
            lambda: trace_program(ModelConfig.from_gguf(keys, weights), weights),
            lambda: choose_types(Model(keys, file.tensors), choices.one_of(list(RECIPES.values()))),
        ):
            try:
                work()
            except InputError as error:
                refusal = error
    if refusal:
        raise refusal


@cache
def _tiny_tensors() -> dict[str, Any]:
    return tiny_gguf.tensors()


def _model_file(folder: Path) -> Path:
    path = folder / "whole.gguf"
    if not path.exists():
        path.write_bytes(_model_bytes())
    return path


def run_tokenizer(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    keys = {f"tokenizer.ggml.{name}": value for name, value in TOKENIZER.items()}
    names = [*keys, *(f"tokenizer.ggml.{n}_token_id" for n in ("bos", "eot", "unknown", "padding"))]
    names += ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.scores"]
    for _ in range(choices.number(0, 3)):
        keys[choices.one_of(names)] = _value(choices)
    if choices.number(0, 1):
        keys["tokenizer.ggml.model"] = string("llama")
    _use_tokenizer(keys, choices)


def run_vocabulary(data: bytes, folder: Path) -> None:
    """The kinds of vocabularies besides those that merge."""
    choices = Choices(data)
    keys = {f"tokenizer.ggml.{name}": value for name, value in TOKENIZER.items()}
    keys["tokenizer.ggml.model"] = string(choices.one_of(("bert", "t5", "rwkv", "huggingface")))
    keys["tokenizer.ggml.unknown_token_id"] = u32(choices.number(0, 3))
    names = ["scores", "precompiled_charsmap", "remove_extra_whitespaces", "add_space_prefix", "normalizer.lowercase"]
    names += [*TOKENIZER, "unknown_token_id", "seperator_token_id", "add_sep_token"]
    for _ in range(choices.number(0, 3)):
        keys[f"tokenizer.ggml.{choices.one_of(names)}"] = _value(choices)
    if choices.number(0, 1):
        vocab = {choices.text(4): choices.number(0, 40) for _ in range(choices.number(1, 5))}
        kind, unknown = choices.one_of(("WordLevel", "WordPiece", "BPE")), choices.one_of([*vocab, None, "<unk>"])
        model = {"type": kind, "vocab": vocab, "unk_token": unknown, "merges": []}
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9} if kind == "WordPiece" else {}
        keys["tokenizer.huggingface.json"] = string(json.dumps({"model": model}))
    _use_tokenizer(keys, choices)


def _use_tokenizer(keys: dict[str, Value], choices: Choices) -> None:
    tokenizer = Tokenizer.from_gguf(keys)
    for parse_special in (False, True):
        ids = tokenizer.encode(choices.text(200), parse_special=parse_special)
        assert all(0 <= id < tokenizer.size for id in ids)
        tokenizer.decode(ids)


def run_template(data: bytes, folder: Path) -> None:
    template = ChatTemplate.compile(data.decode("utf-8", "replace"), _plain_tokenizer())
    template.render([{"role": "user", "content": "Hi <s>"}, {"role": "assistant", "content": "Yes?"}])


@cache
def _plain_tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf({f"tokenizer.ggml.{name}": value for name, value in TOKENIZER.items()})


def template_seeds(folder: Path) -> list[bytes]:
    chat = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    more = "{% set n = namespace(a=0) %}{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    loop = "{% macro f(x, y=1) %}{{ x | tojson(indent=2) }}{{ y * 'ab' }}{% endmacro %}{{ f(messages, 3) }}"
    return [text.encode() for text in (chat, more, loop, "{{ bos_token + 'x' * 10 ** 9 }}", "{% for i in range(9) %}")]


def read_weights(path: Path) -> None:
    file = open_safetensors(path)
    for name in file.entries:
        tensor = file.tensor(name)
        tensor.read(0, tensor.rows)


def safetensors_seeds(folder: Path) -> list[bytes]:
    header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}
    header |= {"b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}}
    text = json.dumps(header).encode()
    return [struct.pack("<Q", len(text)) + text + bytes(range(32))]


def _checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A small checkpoint in `folder`, made once, and what its JSON files hold."""
    from tests.tiny_checkpoints import make_checkpoint

    path = folder / "checkpoint"
    if not path.exists():
        make_checkpoint("llama3-rope", path)
    if path not in _TEXTS:
        _TEXTS[path] = {n: json.loads((path / n).read_text()) for n in CHECKPOINT_FILES if (path / n).exists()}
    return path, _TEXTS[path]


_TEXTS: dict[Path, dict[str, Any]] = {}
CHECKPOINT_FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")


def run_checkpoint(data: bytes, folder: Path) -> None:
    """Values, whole objects and keys of a checkpoint's JSON files are replaced by junk."""
    choices, (checkpoint, texts) = Choices(data), _checkpoint(folder)
    name = choices.one_of(list(texts))
    whole = json.loads(json.dumps(texts[name]))
    for _ in range(choices.number(1, 3)):
        holder: Any = whole
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            if not keys:
                break
            key = choices.one_of(list(keys))
            if not isinstance(holder[key], dict | list) or choices.number(0, 3) == 0:
                junk = choices.number(0, len(JUNK) + 1)
                holder[key] = (
                    deepcopy(JUNK[junk]) if junk < len(JUNK) else choices.integer() if junk % 2 else choices.text(20)
                )
                break
            holder = holder[key]
    path = checkpoint / name
    try:
        path.write_text(json.dumps(whole), encoding="utf-8")
        plan_conversion(checkpoint)
    finally:
        path.write_text(json.dumps(texts[name]), encoding="utf-8")


def importance_seeds(folder: Path) -> list[bytes]:
    from lltool.quant.importance import Importance

    sums = {"blk.0.attn_q.weight": np.ones((1, 8), np.float32), "blk.0.ffn_up_exps.weight": np.ones((2, 4), np.float32)}
    counts = {name: np.full(len(values), 4, np.float32) for name, values in sums.items()}
    made = Importance(sums, counts, 1, 512, ("calibration.txt",))
    write_importance(folder / "a.gguf", made)
    write_dat(folder / "a.dat", made)
    return [(folder / "a.gguf").read_bytes(), (folder / "a.dat").read_bytes()]


def reference_seeds(folder: Path) -> list[bytes]:
    windows = np.arange(8, dtype=np.int32).reshape(1, 8)
    rows = scored_tokens(8)
    digest = hashlib.sha256(windows.tobytes()).hexdigest()
    metadata = {"format": FORMAT, "version": VERSION, "vocabulary": 16, "tokens_sha256": digest}
    ids, log_probs = np.zeros((rows, 4), np.uint16), np.full((rows, 4), -2, np.float32)
    with (folder / "r.npz").open("wb") as file:
        arrays = {"windows": windows, "ids": ids, "log_probs": log_probs, "tails": np.ones(rows, np.float32)}
        np.savez(file, metadata=np.array(json.dumps(metadata)), **arrays)
    open_reference(folder / "r.npz")
    return [(folder / "r.npz").read_bytes()]


def run_state(data: bytes, folder: Path) -> None:
    """A file of a state, with a check sum that fits; what it restores can be computed with."""
    path = folder / "a.state"
    path.write_bytes(data[:-4] + struct.pack("<I", zlib.crc32(data[:-4])))
    with load_model(_model_file(folder), context=64, threads=1) as model, StateFile(path, model) as file:
        sequence = model.new_sequence()
        file.claim(sequence)
        file.fill(sequence)
        if sequence.length < model.context:
            model.evaluate(sequence, [1])


def state_seeds(folder: Path) -> list[bytes]:
    with load_model(_model_file(folder), context=64, threads=1) as model:
        model.evaluate(sequence := model.new_sequence(), [1, 2, 3])
        save_state(folder / "seed.state", model, [1, 2, 3], sequence)
    return [(folder / "seed.state").read_bytes()]


def run_bindings(data: bytes, folder: Path) -> None:
    """Sequences of calls of the native modules with odd arguments, as hypothesis makes them of the bytes."""
    _boundary_tests()[data[0] % 2 if data else 0](data[1:])


@cache
def _boundary_tests() -> list[Callable[[bytes], object]]:
    from tests.engine.cpu import test_native_boundary as engine
    from tests.quant import test_native_boundary as quant

    @settings(deadline=None, database=None)
    @given(st.data())
    def engine_calls(data: st.DataObject) -> None:
        engine.test_any_calls.hypothesis.inner_test(isa.chosen(), data)

    @settings(deadline=None, database=None)
    @given(st.data())
    def quant_calls(data: st.DataObject) -> None:
        quant.test_any_arguments.hypothesis.inner_test(data)

    return [engine_calls.hypothesis.fuzz_one_input, quant_calls.hypothesis.fuzz_one_input]


def random_seeds(folder: Path) -> list[bytes]:
    random = np.random.default_rng(0)
    return [random.bytes(size) for size in (16, 64, 256, 1024)]


TARGETS: dict[str, Target] = {
    "header": Target(in_file("a.gguf", read_header), lambda folder: [_model_bytes()[:4096], _model_bytes()], 20_000),
    "config": Target(run_config, random_seeds, 3_000),
    "tensors": Target(run_tensors, random_seeds, 300),
    "codec": Target(run_codec, random_seeds, 200_000),
    "bindings": Target(run_bindings, random_seeds, 3_000),
    "tokenizer": Target(run_tokenizer, random_seeds, 15_000),
    "vocabulary": Target(run_vocabulary, random_seeds, 3_000),
    "template": Target(run_template, template_seeds, 10),
    "safetensors": Target(in_file("a.safetensors", read_weights), safetensors_seeds, 100_000),
    "checkpoint": Target(run_checkpoint, random_seeds, 2_000),
    "importance": Target(in_file("a.imatrix", read_importance), importance_seeds, 50_000),
    "reference": Target(in_file("a.npz", open_reference), reference_seeds, 20_000),
    "state": Target(run_state, state_seeds, 500),
    "logits": Target(
        in_file("a.logits", open_logits_file), lambda folder: [b"_logits_" + struct.pack("<3i", 4, 2, 1)], 150_000
    ),
}
