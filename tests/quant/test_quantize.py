"""Whole files against what llama-quantize makes of the same one, and what is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import string
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model, Tensor
from lltool.gguf.writer import write_gguf
from lltool.quant.choose import Options, describe_fallbacks
from lltool.quant.plan import Request, plan_quantization
from lltool.quant.quantize import quantize_file


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "golden" / "quantize_smollm2_f16.json").read_text())
    return found


@pytest.fixture(scope="module")
def f16_file(real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "smollm2-f16.gguf"
    quantize_file(real_model("smollm2-q4_1"), path, "F16", request=Request(allow_requantize=True))
    return path


def assert_equals_golden(path: Path, expected: dict[str, Any]) -> None:
    with open_gguf(path) as file:
        found = {t.name: [t.type.name, hashlib.sha256(t.data()).hexdigest()[:16]] for t in file.tensors}
        assert found == expected["tensors"]
        assert file.metadata["general.file_type"].data == expected["file_type"]


def test_dequantizing_to_f16_equals_llama_quantize(f16_file: Path, golden: dict[str, Any]) -> None:
    assert_equals_golden(f16_file, golden["F16"])


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "Q8_0"])
def test_files_equal_llama_quantize(type: str, f16_file: Path, golden: dict[str, Any], tmp_path: Path) -> None:
    for key, options in ((type, Options()), (f"{type}+pure", Options(pure=True))):
        quantize_file(f16_file, tmp_path / "out.gguf", type, options)
        assert_equals_golden(tmp_path / "out.gguf", golden[key])


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """Two matrices, one of rows that fill no block, and a vector."""
    rows = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    narrow, norm = np.ones((4, 40), np.float32), np.ones((1, 64), np.float32)
    path = tmp_path / "small.gguf"
    write_gguf(path, Model({"general.architecture": string("llama")}, [
        Tensor("blk.0.attn_q.weight", GGMLType.F32, (8, 64), lambda a, b: rows.view(np.uint8)[a:b]),
        Tensor("blk.0.attn_k.weight", GGMLType.F32, (4, 40), lambda a, b: narrow.view(np.uint8)[a:b]),
        Tensor("output_norm.weight", GGMLType.F32, (64,), lambda a, b: norm.view(np.uint8)[a:b]),
    ]))  # fmt: skip
    return path


def test_a_file_says_how_it_was_made(small_file: Path) -> None:
    report = quantize_file(small_file, None, "q8_0", Options(pure=True))
    assert report.path == small_file.with_name("ggml-model-Q8_0.gguf")
    with open_gguf(report.path) as file:
        values = {key: value.data for key, value in file.metadata.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.quantization_version"] == 2
    assert values["lltool.quantize.recipe"] == "Q8_0 pure"
    assert values["lltool.quantize.source"] == "small.gguf"
    assert values["lltool.quantize.source_sha256"] == hashlib.sha256(small_file.read_bytes()).hexdigest()


def test_plan_tells_fallbacks_and_sizes(small_file: Path) -> None:
    with open_gguf(small_file) as file:
        plan = plan_quantization(file, "Q8_0")
        fallbacks = [choice for choice in plan.choices if choice.type != choice.wanted]
        assert [choice.tensor.name for choice in fallbacks] == ["blk.0.attn_k.weight"]
        assert fallbacks[0].type == GGMLType.F16
        assert describe_fallbacks(plan.choices) == [
            "blk.0.attn_k.weight: rows of 40 are not whole Q8_0 blocks of 32; F16 instead (+0.0 MiB)"
        ]
        assert plan.source_bytes == 4 * (8 * 64 + 4 * 40 + 64)
        assert plan.bytes == 8 * 2 * 34 + 2 * 4 * 40 + 4 * 64
        with pytest.raises(InputError, match=r"not whole Q8_0 blocks of 32; F16 instead .* drop --strict"):
            plan_quantization(file, "Q8_0", request=Request(strict=True))


def test_quantizing_twice_is_refused(small_file: Path, tmp_path: Path) -> None:
    quantize_file(small_file, tmp_path / "once.gguf", "Q8_0")
    with pytest.raises(InputError, match=r"once\.gguf: blk\.0\.attn_q\.weight is Q8_0 already.*--allow-requantize"):
        quantize_file(tmp_path / "once.gguf", tmp_path / "twice.gguf", "Q4_0")
    assert not (tmp_path / "twice.gguf").exists()
    quantize_file(tmp_path / "once.gguf", tmp_path / "twice.gguf", "Q4_0", request=Request(allow_requantize=True))


def test_damaged_weights_are_named_and_leave_nothing(small_file: Path, tmp_path: Path) -> None:
    with open_gguf(small_file) as file:
        first_row = file.tensor("blk.0.attn_q.weight").read(0, 1).tobytes()
    damaged = bytearray(small_file.read_bytes())
    start = damaged.index(first_row) + 3 * 256
    damaged[start : start + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "damaged.gguf").write_bytes(damaged)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"damaged\.gguf: blk\.0\.attn_q\.weight: row 3 holds NaN or infinity"):
        quantize_file(tmp_path / "damaged.gguf", tmp_path / "out.gguf", "Q8_0")
    assert sorted(tmp_path.iterdir()) == before


def test_the_source_is_not_overwritten(small_file: Path) -> None:
    with pytest.raises(InputError, match="would overwrite its own source"):
        quantize_file(small_file, small_file, "Q8_0")
