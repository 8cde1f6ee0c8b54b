"""Fixtures for the tests of quant."""

import json
import lzma
from collections.abc import Iterator
from typing import Any

import pytest

from lltool.quant import _native, isa
from tests.conftest import GoldenFile


@pytest.fixture(scope="session")
def llama_quantized(golden_file: GoldenFile) -> dict[str, Any]:
    """llama-quantize's results for SmolLM2 in F16: by file type, each tensor's type and the start of its SHA-256."""
    packed = golden_file("quantize_smollm2_f16.json.xz").read_bytes()
    found: dict[str, Any] = json.loads(lzma.decompress(packed))
    return found


@pytest.fixture(params=_native.available_isas())
def each_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test under every instruction set of this machine."""
    _native.select_isa(request.param)
    yield request.param
    isa.apply()
