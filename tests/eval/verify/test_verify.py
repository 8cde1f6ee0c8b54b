"""Verification against transformers: the same model passes in every type, and planted faults are named."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.eval.verify.stages import nmse, rounding
from lltool.eval.verify.verify import verify
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType, array, string
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model
from lltool.gguf.writer import write_gguf
from lltool.quant.codec import decode
from lltool.quant.convert.conversion import convert
from lltool.tools.cli import main
from tests.tiny_checkpoints import make_checkpoint

SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
FAMILIES = {
    "llama": {"head_dim": 64, **SIZES},
    "qwen3moe": {},
    "gemma3": {},
    "gptneox": {},
    "olmo2": {},
}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(family: str) -> Path:
        folder = make_checkpoint(family, tmp_path_factory.mktemp("verify") / "tiny", **FAMILIES[family])
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        return folder

    make("llama")  # here, so that no test pays for importing torch
    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_passes(family: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint(family)
    verdict = verify(convert(folder, tmp_path / "m.gguf", "f32"), folder, tokens=100)
    assert verdict.differences == []
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    blocks = [f"block {layer}" for layer in range(layers)]
    assert [stage.name for stage in verdict.stages] == ["embedding", *blocks, "head"]
    assert max(stage.error for stage in verdict.stages) < 1e-8  # float32's rounding in another order
    assert max(stage.drift for stage in verdict.stages) < 1e-8
    assert (verdict.logits.top1, verdict.logits.top5) == (1.0, 1.0)
    assert verdict.logits.divergence < 1e-8
    assert verdict.logits.tokens > 100


@pytest.mark.parametrize("outtype", ["f16", "bf16", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_S"])
def test_rounding_to_a_type_is_no_difference(outtype: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    verdict = verify(convert(checkpoint("llama"), tmp_path / "m.gguf", outtype), checkpoint("llama"), tokens=100)
    assert verdict.differences == []
    assert all(stage.error > 0 for stage in verdict.stages)
    assert verdict.logits.nmse > 1e-9


Weights = Callable[[dict[str, Any], dict[str, Value]], None]


def permute_heads(weights: dict[str, Any], metadata: dict[str, Value]) -> None:
    rows = weights["blk.1.attn_q.weight"]
    rows[:] = np.concatenate([rows[64:128], rows[:64], rows[128:]])


def wrong_rope_base(weights: dict[str, Any], metadata: dict[str, Value]) -> None:
    metadata["llama.rope.freq_base"] = Value(ValueType.FLOAT32, 20000.0)


def norm_off_by_one(weights: dict[str, Any], metadata: dict[str, Value]) -> None:
    weights["blk.2.ffn_norm.weight"] += 1


def last_norm_off_by_one(weights: dict[str, Any], metadata: dict[str, Value]) -> None:
    weights["output_norm.weight"] += 1


def transpose(weights: dict[str, Any], metadata: dict[str, Value]) -> None:
    square = weights["blk.1.attn_output.weight"]
    square[:] = square.T.copy()


def shift_embedding(weights: dict[str, Any], metadata: dict[str, Value]) -> None:
    weights["token_embd.weight"][:] = np.roll(weights["token_embd.weight"], 1, axis=0)


def swap_experts(weights: dict[str, Any], metadata: dict[str, Value]) -> None:
    stack = weights["blk.1.ffn_up_exps.weight"]
    stack[:] = stack[[1, 0, *range(2, len(stack))]]


def planted(path: Path, folder: Path, fault: Weights) -> Path:
    """A copy of a file with a fault in its weights or metadata."""
    with open_gguf(path) as file:
        metadata = dict(file.metadata)
        weights = {t.name: decode(t.data(), t.type).reshape(t.shape) for t in file.tensors}
        fault(weights, metadata)
        tensors = []
        for tensor in file.tensors:
            rows = np.ascontiguousarray(weights[tensor.name]).reshape(tensor.rows, -1).view(np.uint8)
            tensors.append(replace(tensor, read=lambda start, stop, rows=rows: rows[start:stop]))
        write_gguf(folder / "planted.gguf", Model(metadata, tensors))
    return folder / "planted.gguf"


@pytest.mark.parametrize(
    ("family", "fault", "first"),
    [
        ("llama", permute_heads, "block 1"),
        ("llama", wrong_rope_base, "block 0"),
        ("llama", norm_off_by_one, "block 2"),
        ("llama", last_norm_off_by_one, "head"),
        ("llama", transpose, "block 1"),
        ("llama", shift_embedding, "embedding"),
        ("qwen3moe", swap_experts, "block 1"),
    ],
)
@pytest.mark.parametrize("outtype", ["f32", "Q8_0"])
def test_a_planted_fault_is_named(
    family: str, fault: Weights, first: str, outtype: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = planted(convert(checkpoint(family), tmp_path / "m.gguf", "f32"), tmp_path, fault)
    if outtype != "f32":
        from lltool.quant.quantize import quantize_file

        path = quantize_file(path, tmp_path / "q.gguf", outtype).path
    verdict = verify(path, checkpoint(family), tokens=100)
    assert verdict.first is not None
    assert verdict.first.name == first
    assert len(verdict.differences) == 1
    assert verdict.differences[0].startswith(f"{first} departs: its error is ")


def test_a_wrong_merge_and_a_wrong_template_are_named(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    def wrong(weights: dict[str, Any], metadata: dict[str, Value]) -> None:
        merges = list(metadata["tokenizer.ggml.merges"].data)
        metadata["tokenizer.ggml.merges"] = array(ValueType.STRING, merges[1:])
        metadata["tokenizer.chat_template"] = string(TEMPLATE.replace(": ", " - "))

    path = planted(convert(checkpoint("llama"), tmp_path / "m.gguf", "f32"), tmp_path, wrong)
    verdict = verify(path, checkpoint("llama"), tokens=20)
    assert verdict.first is None
    tokenizer, template = verdict.differences
    assert "gives [" in tokenizer
    assert tokenizer.startswith("tokenizer: ")
    assert template == "chat template: 'default' differs in line 1"


def test_layer_by_layer_gives_the_same(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    path = convert(checkpoint("llama"), tmp_path / "m.gguf", "bf16")
    whole, parts = (verify(path, checkpoint("llama"), tokens=50, by_layer=by_layer) for by_layer in (False, True))
    assert [vars(stage) for stage in parts.stages] == [vars(stage) for stage in whole.stages]
    assert parts.logits == whole.logits
    assert parts.notes == ["the checkpoint does not fit in memory, so it is read layer by layer"]


def test_command(checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    folder = str(checkpoint("llama"))
    assert main(["convert", folder, "-o", str(path), "--outtype", "Q8_0", "--verify"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}\n"
    assert "the same: tokenizer, chat template and every stage" in captured.err
    assert main(["verify", str(path), folder, "-n", "40", "--stamp", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["same"], report["first_departing"], len(report["stages"])) == (True, None, 5)
    with open_gguf(path) as file:
        assert file.metadata["lltool.verify.same"].data is True
        assert file.metadata["lltool.verify.checkpoint"].data == "tiny"
        assert file.metadata["lltool.verify.nmse"].data == pytest.approx(report["logits"]["nmse"])
    bad = planted(convert(folder, tmp_path / "f32.gguf", "f32"), tmp_path, norm_off_by_one)
    assert main(["verify", str(bad), folder, "--stamp", "-n", "40"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("block 2 departs: ")
    assert [line.split()[:2] for line in lines if line.endswith("departs")] == [["block", "2"]]
    with open_gguf(bad) as file:
        assert file.metadata["lltool.verify.same"].data is False
        assert file.metadata["lltool.verify.differences"].data == lines[-1]


def test_bad_input_is_one_line(checkpoint: Callable[[str], Path], tmp_path: Path, capsys: Any) -> None:
    other = make_checkpoint("llama", tmp_path / "other", num_hidden_layers=2)
    path = convert(checkpoint("llama"), tmp_path / "m.gguf")
    for arguments, message in [
        ((str(path), str(other)), f"{other}: transformers' model has no list of 3 layers, which the file has"),
        ((str(path), "none"), "none: no such file or folder; wanted a checkpoint's folder"),
        ((str(tmp_path / "x.gguf"), str(other)), "x.gguf: no such file"),
    ]:
        assert main(["verify", *arguments]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_nmse_and_rounding() -> None:
    assert nmse(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(1 / 5)
    assert nmse(np.array([np.nan]), np.array([1.0])) == float("inf")
    assert rounding(GGMLType.F32) == 0
    errors = [rounding(type) for type in (GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q2_K)]
    assert errors == sorted(errors)
    assert errors[0] == pytest.approx(2**-22 / 3 / 1.9, rel=0.5)  # half a unit in the eleventh place, at most
