"""Encoders of the formats with codebooks where the choice of entries is delicate, and on a real model's tensors."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.reader import open_gguf
from lltool.quant.codec import ENCODED, NEEDS_IMPORTANCE, decode, encode
from lltool.quant.importance import read_importance
from tests.conftest import GoldenFile

COLUMNS = 512
CODEBOOKS = [type for type in sorted(ENCODED) if type.name.startswith(("IQ1_S", "IQ2", "IQ3"))]


def make_rows(kind: str) -> NDArray[np.float32]:
    random = np.random.default_rng(11)
    normal = random.standard_normal((19, COLUMNS))
    groups = normal.reshape(19, -1, 16)
    some = random.random(groups.shape[:2]) < 0.4
    if kind == "groups of zeros":
        groups[some] = 0
    if kind == "groups of hardly anything":
        groups[some] *= 10.0 ** -random.integers(5, 20, (int(some.sum()), 1))
    if kind == "many ties":
        return (random.integers(-3, 4, normal.shape) * 0.25).astype(np.float32)
    if kind == "largest weights count nothing":
        normal[:, ::7] *= 1000
    if kind == "sums below zero":  # from small, important weights that are stored with the wrong sign
        normal = np.sign(normal) * random.uniform(0.8, 1.2, normal.shape)
        normal[:, ::8] *= 1e-3
    if kind == "outliers that count nothing, beyond the range of rounding":
        normal[:, ::7] *= 1e6
    return (normal * 0.03).astype(np.float32)


KINDS = (
    "groups of zeros",
    "groups of hardly anything",
    "many ties",
    "largest weights count nothing",
    "sums below zero",
    "outliers that count nothing, beyond the range of rounding",
)


@pytest.mark.parametrize("type", CODEBOOKS, ids=lambda type: type.name)
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_equal_ggml(type: GGMLType, kind: str, each_isa: str) -> None:
    libgguf = pytest.importorskip("libgguf")
    random = np.random.default_rng(5)
    uneven = np.exp(4 * random.standard_normal(COLUMNS)).astype(np.float32)
    uneven[::7] = 0
    steep = np.ones_like(uneven)
    steep[::8] = 5e5
    rows = make_rows(kind)
    for importance in (uneven, steep, np.ones_like(uneven), np.zeros_like(uneven), None):
        if importance is None and type in NEEDS_IMPORTANCE:
            continue
        expected = libgguf.quantize_rows(rows, int(type), importance)
        np.testing.assert_array_equal(encode(rows, type, importance), expected)


@pytest.mark.parametrize(
    ("file_type", "type"),
    [("IQ2_XXS", "IQ2_XXS"), ("IQ2_S", "IQ2_XS"), ("IQ2_M", "IQ2_S"), ("IQ3_XXS", "IQ3_XXS"), ("IQ3_S", "IQ3_S")],
)
def test_tensors_equal_llama_quantize(
    file_type: str,
    type: str,
    golden_file: GoldenFile,
    llama_quantized: dict[str, Any],
    real_model: Callable[[str], Path],
) -> None:
    importance = read_importance(golden_file("imatrix/smollm2-imatrix.gguf"))
    hashes = llama_quantized[f"{file_type}+imatrix"]["tensors"]
    names = [name for name in sorted(hashes) if hashes[name][0] == type]
    assert len(names) >= 27
    with open_gguf(real_model("smollm2-q4_1")) as file:
        for name in names[::13]:
            tensor = file.tensor(name)
            weights = decode(tensor.data(), tensor.type).astype(np.float16).astype(np.float32)
            data = encode(weights, GGMLType[type], importance.means(name)[0])
            assert hashlib.sha256(data.data).hexdigest()[:16] == hashes[name][1], name
