"""`lltool inspect` on a small file and on the real ones."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.describe import TypeShare, describe_file
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import ValueType, array, boolean, f32, string, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.tools.cli import main

METADATA = {
    "general.architecture": string("llama"),
    "general.file_type": u32(15),
    "general.name": string("Tiny \x1b[31m model"),
    "llama.rope.freq_base": f32(10000.0),
    "tokenizer.ggml.add_bos_token": boolean(True),
    "tokenizer.ggml.tokens": array(ValueType.STRING, [f"<{i}>" for i in range(9)]),
    "tokenizer.ggml.token_type": array(ValueType.INT32, [1, 2]),
    "tokenizer.chat_template": string("{% x %}\n" * 40),
    "raw": string("caf\udce9"),
    "odd\x1bkey": u32(1),
}


def zeros(name: str, type: GGMLType, shape: tuple[int, ...]) -> Tensor:
    tensor = Tensor(name, type, shape, lambda start, stop: np.zeros((stop - start, tensor.row_bytes), np.uint8))
    return tensor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensors = [
        zeros("output_norm.weight", GGMLType.F32, (256,)),
        zeros("blk.0.attn_q.weight", GGMLType.Q4_K, (3, 256)),
        zeros("blk.0.attn_k.weight", GGMLType.Q4_K, (1, 256)),
    ]
    return write_gguf(tmp_path / "m.gguf", Model(METADATA, tensors))[0]


def test_describe(path: Path) -> None:
    with open_gguf(path) as file:
        facts = describe_file(file)
    assert (facts.architecture, facts.file_type, facts.parameters) == ("llama", "Q4_K_M", 5 * 256)
    assert (facts.file_bytes, facts.tensor_bytes) == (path.stat().st_size, 1024 + 4 * 144)
    assert facts.bits_per_weight == 8 * (1024 + 4 * 144) / 1280
    assert facts.types == (TypeShare(GGMLType.F32, 1, 256, 1024), TypeShare(GGMLType.Q4_K, 2, 1024, 576))


def test_text(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    lines = [re.sub(" +", " ", line) for line in out.splitlines()]
    for line in (
        f"file {path}",
        "format GGUF version 3, alignment 32",
        r"name Tiny \x1b[31m model",
        "file type Q4_K_M",
        "parameters 1,280",
        "bits/weight 10.000",
        "Q4_K 2 576 36.0%",
        "llama.rope.freq_base float32 10000.0",
        "tokenizer.ggml.add_bos_token bool True",
        'tokenizer.ggml.tokens string[9] ["<0>", "<1>", "<2>", "<3>", "<4>", "<5>", ...]',
        "tokenizer.ggml.token_type int32[2] [1, 2]",
        r'raw string "caf\udce9"',
        r"odd\x1bkey uint32 1",
        "tensors 3, which --tensors lists",
    ):
        assert line in lines
    assert not any("attn_q" in line for line in lines)
    assert out.isprintable() or all(line.isprintable() for line in out.splitlines())


def test_sections(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(path), "--tensors"]) == 0
    lines = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == "blk.0.attn_q.weight Q4_K 3 x 256 432"
    assert len(lines) == 4
    assert main(["inspect", str(path), "--metadata"]) == 0
    out = capsys.readouterr().out
    assert '"<8>"]' in out
    assert r"{% x %}\n" * 40 in out


def test_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == [str(path)]
    assert report["bits_per_weight"] == 10
    assert report["types"]["Q4_K"] == {"tensors": 2, "parameters": 1024, "bytes": 576}
    assert report["metadata"]["tokenizer.ggml.tokens"] == [f"<{i}>" for i in range(9)]
    assert report["metadata"]["raw"] == "caf\udce9"
    assert report["tensors"][1] == {"name": "blk.0.attn_q.weight", "type": "Q4_K", "shape": [3, 256], "bytes": 432}
    assert main(["inspect", str(path), "--json", "--tensors"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["tensors"]


@pytest.mark.parametrize(
    ("name", "architecture", "file_type", "parameters", "bits"),
    [
        ("smollm2-q4_1", "llama", "Q4_1", 134_515_008, 5.744),
        ("gemma3-270m-q4_k_m", "gemma3", "Q4_K_M", 268_098_176, 7.358),
        ("qwen25coder-0.5b-q4_k_m", "qwen2", "Q4_K_M", 630_167_424, 6.163),
    ],
)
def test_real_models(
    real_model: Callable[[str], Path], name: str, architecture: str, file_type: str, parameters: int, bits: float
) -> None:
    """The figures are sums over what PyPI's gguf reads."""
    with open_gguf(real_model(name)) as file:
        facts = describe_file(file)
    assert (facts.architecture, facts.file_type, facts.parameters) == (architecture, file_type, parameters)
    assert round(facts.bits_per_weight or 0, 3) == bits


def test_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert main(["inspect", str(tmp_path / "x.gguf")]) == 2
    assert capsys.readouterr().err.startswith(f"lltool: error: {tmp_path}/x.gguf: the version at byte 4")
    assert main(["inspect", str(tmp_path / "none.gguf")]) == 2
    assert capsys.readouterr().err == f"lltool: error: {tmp_path}/none.gguf: no such file; {tmp_path} has x.gguf\n"


def test_json_has_null_for_numbers_that_json_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"scale": f32(float("nan")), "scales": array(ValueType.FLOAT32, np.array([1, np.inf], np.float32))}
    path = write_gguf(tmp_path / "odd.gguf", Model(odd, []))[0]
    assert main(["inspect", str(path), "--json", "--metadata"]) == 0
    assert json.loads(capsys.readouterr().out) == {"metadata": {"scale": None, "scales": [1.0, None]}}
