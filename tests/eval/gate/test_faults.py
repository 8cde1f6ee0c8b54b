"""The gate on a real model: it catches a planted fault of each kind, and honest runs pass in all their variants."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.batch import Batch
from lltool.engine.executors import EXECUTORS, Setup
from lltool.engine.program import Program
from lltool.eval.common.text import SAMPLE_TEXT
from lltool.eval.gate.check import GateVerdict, check, format_verdict
from lltool.eval.gate.record import record
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, f32, string
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Bytes, Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant import _native
from lltool.quant.codec import decode, encode

pytestmark = pytest.mark.slow

FAST = [name for name in _native.available_isas() if name != "scalar"] or ["scalar"]
TEXT = {"mean KL", "99.9 % KL", "perplexity", "top-1 agreement, %"}
SCALES = "blk.10.ffn_down.weight"  # Q4_1: the first two of a block's 20 bytes are its scale


@pytest.fixture(scope="module")
def model(real_model: Callable[[str], Path]) -> Path:
    return real_model("smollm2-q4_1")


@pytest.fixture(scope="module")
def baseline(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gate") / "base.json"
    record(model, SAMPLE_TEXT, path, context=64, windows=12, answer_tokens=8)
    return path


def bend(source: Path, path: Path, keys: Mapping[str, Value] = {}, tensors: Mapping[str, Tensor] = {}) -> Path:
    """A copy of a model with other metadata or tensors."""
    with open_gguf(source) as file:
        changed = [tensors.get(tensor.name, tensor) for tensor in file.tensors]
        write_gguf(path, Model({**file.metadata, **keys}, changed))
    return path


def shift_scales(data: Bytes) -> Bytes:
    """Gives each block of Q4_1 the scale of the block before it."""
    blocks = data.reshape(len(data), -1, 20).copy()
    blocks[..., :2] = np.roll(blocks[..., :2], 1, axis=1)
    return blocks.reshape(data.shape)


def replaced(source: Path, name: str, type: GGMLType, change: Callable[[Bytes, GGMLType], Bytes]) -> dict[str, Tensor]:
    with open_gguf(source) as file:
        tensor = file.tensor(name)
        data = change(tensor.data(), tensor.type)
    return {name: Tensor(name, type, tensor.shape, lambda start, stop: data[start:stop])}


def failures(verdict: GateVerdict) -> set[str]:
    return {row.measure for row in verdict.rows if row.failed}


def spoil(program: Program) -> Program:
    weight = program.weights[SCALES]
    shifted = replace(weight, data=shift_scales(weight.data))
    return replace(program, weights={**program.weights, SCALES: shifted})


class TokenFault:
    """An executor that hands batches of a single token to a spoiled one."""

    def __init__(self, honest: Any, spoiled: Any) -> None:
        self.head_rows = honest.head_rows
        self.both, self.answering = (honest, spoiled), honest

    def run(self, batch: Batch) -> None:
        for executor in self.both:
            executor.run(batch)
        self.answering = self.both[len(batch.tokens) == 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.answering, name)


def test_a_tensor_whose_scales_are_off_by_one_is_caught(model: Path, baseline: Path, tmp_path: Path) -> None:
    shifted = replaced(model, SCALES, GGMLType.Q4_1, lambda data, _: shift_scales(data))
    verdict = check(baseline, model_path=bend(model, tmp_path / "m.gguf", tensors=shifted))
    assert failures(verdict) >= {"mean KL", "mean KL, float32"}, format_verdict(verdict)


def test_a_kernel_that_takes_the_wrong_scale_is_caught_and_distinguished_from_wrong_weights(
    baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(program: Program, setup: Setup) -> Any:
        return make_cpu(spoil(program) if setup.precision == "int8" else program, setup)

    make_cpu = EXECUTORS["cpu"]
    monkeypatch.setitem(EXECUTORS, "cpu", make)
    verdict = check(baseline)
    assert "mean KL" in failures(verdict), format_verdict(verdict)
    assert "mean KL, float32" not in failures(verdict)
    assert "look at the kernels that compute in 8 bits" in verdict.diagnosis


def test_a_requantized_tensor_is_caught(model: Path, baseline: Path, tmp_path: Path) -> None:
    """One of the 210 matrices of 30 layers, or a small one: perplexity does not show it."""
    for name, type in (("blk.15.ffn_down.weight", GGMLType.Q3_K), ("blk.20.attn_v.weight", GGMLType.Q4_0)):
        other = replaced(model, name, type, lambda data, old, new=type: encode(decode(data, old), new))  # type: ignore[misc]
        verdict = check(baseline, model_path=bend(model, tmp_path / f"{type.name}.gguf", tensors=other))
        assert "mean KL, float32" in failures(verdict), format_verdict(verdict)


def test_a_wrong_rope_base_is_caught(model: Path, baseline: Path, tmp_path: Path) -> None:
    verdict = check(baseline, model_path=bend(model, tmp_path / "m.gguf", {"llama.rope.freq_base": f32(10_000)}))
    assert failures(verdict) >= {"perplexity", "mean KL", "mean KL, float32"}, format_verdict(verdict)


def test_a_swapped_template_is_caught_though_the_text_is_unchanged(model: Path, baseline: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    verdict = check(
        baseline, model_path=bend(model, tmp_path / "m.gguf", {"tokenizer.chat_template": string(template)})
    )
    assert failures(verdict) == {"prompts", "KL of answers", "greedy flips"}, format_verdict(verdict)
    assert verdict.diagnosis.startswith("the chat template")


def test_a_fault_in_single_tokens_only_is_caught(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(program: Program, setup: Setup) -> Any:
        return TokenFault(make_cpu(program, setup), make_cpu(spoil(program), setup))

    make_cpu = EXECUTORS["cpu"]
    monkeypatch.setitem(EXECUTORS, "cpu", make)
    verdict = check(baseline)
    assert failures(verdict) >= {"KL of answers"}, format_verdict(verdict)
    assert not failures(verdict) & {*TEXT, "mean KL, float32"}
    assert "one token at a time" in verdict.diagnosis


@pytest.mark.parametrize(
    ("threads", "batch", "instruction_set"),
    [
        *((threads, batch, name) for threads in (1, 2) for batch in (512, 128) for name in FAST[:2]),
        (2, 100, FAST[0]),
        (2, 8, FAST[-1]),
    ],
)
def test_honest_runs_pass(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, threads: int, batch: int, instruction_set: str
) -> None:
    monkeypatch.setattr("lltool.quant.isa.chosen", lambda: instruction_set)
    verdict = check(baseline, threads=threads, batch=batch)
    assert verdict.passed, format_verdict(verdict)
