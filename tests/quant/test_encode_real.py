"""Encoders on the weights of a real model, against llama-quantize's tensors or else libgguf."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
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

Hashes = Mapping[tuple[GGMLType, bool], Mapping[str, str]]  # (type, with importance) -> tensor -> start of its sha256

COMPARED = ENCODED - {GGMLType.F32}


@pytest.fixture(scope="module")
def hashes(llama_quantized: dict[str, Any]) -> Hashes:
    found: dict[tuple[GGMLType, bool], dict[str, str]] = defaultdict(dict)
    for key, made in llama_quantized.items():
        for name, (type, start) in made.get("tensors", {}).items():
            found[GGMLType[type], "+imatrix" in key][name] = start
    return found


@pytest.fixture(scope="module")
def importance(golden_file: GoldenFile) -> Mapping[str, NDArray[np.float32]]:
    found = read_importance(golden_file("imatrix/smollm2-imatrix.gguf"))
    return {name: found.means(name)[0] for name in found.sums}


@pytest.mark.parametrize(
    "layers", [("blk.0.", "blk.28."), pytest.param(("",), marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_tensors_equal_llama_quantize(
    layers: tuple[str, ...],
    hashes: Hashes,
    importance: Mapping[str, NDArray[np.float32]],
    real_model: Callable[[str], Path],
) -> None:
    compared = set()
    with open_gguf(real_model("smollm2-q4_1")) as file:
        for tensor in file.tensors:
            if not tensor.name.startswith(layers):
                continue
            weights = decode(tensor.data(), tensor.type).astype(np.float16).astype(np.float32)
            for (type, is_important), starts in hashes.items():
                if type not in COMPARED or tensor.name not in starts:
                    continue
                data = encode(weights, type, importance.get(tensor.name) if is_important else None)
                assert hashlib.sha256(data.data).hexdigest().startswith(starts[tensor.name]), (tensor.name, type.name)
                compared.add((type, is_important))
    assert compared == {key for key in hashes if key[0] in COMPARED}


@pytest.mark.parametrize("type", sorted(ENCODED - {GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q2_0}))
def test_rows_equal_libgguf(
    type: GGMLType, real_model: Callable[[str], Path], importance: Mapping[str, NDArray[np.float32]], each_isa: str
) -> None:
    """The weights are moved off the grid of the four-bit file from which they come."""
    libgguf = pytest.importorskip("libgguf")
    with open_gguf(real_model("smollm2-q4_1")) as file:
        tensor = file.tensor("blk.7.ffn_down.weight")
        rows = decode(tensor.read(100, 105), tensor.type)
    rows *= 1 + np.random.default_rng(0).uniform(-0.05, 0.05, rows.shape).astype(np.float32)
    for columns in (importance[tensor.name], *(() if type in NEEDS_IMPORTANCE else (None,))):
        np.testing.assert_array_equal(encode(rows, type, columns), libgguf.quantize_rows(rows, int(type), columns))
