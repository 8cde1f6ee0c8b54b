"""How far rounded activations move real models from float32: the divergence of one file at two precisions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.engine.model import load_model
from lltool.eval.divergence.divergence import divergence
from tests.conftest import GoldenFile
from tests.eval.derived_models import f16_copy


def rounding_divergence(path: Path, text: str, windows: int, *, batch: int = 512) -> float:
    """The divergence of int8 from f32 in nats per token, in windows of 512 tokens, `batch` tokens at once."""
    with (
        load_model(path, precision="f32", context=512, batch=batch) as exact,
        load_model(path, precision="int8", context=512, batch=batch) as rounded,
    ):
        return divergence(exact, rounded, text, chunks=windows).mean


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("smollm2-q4_1", "eval_en.txt"),
        ("smollm2-q4_1", "eval_code.py.txt"),
        ("gemma3-270m-q4_k_m", "eval_en.txt"),
        ("qwen25coder-0.5b-q4_k_m", "eval_code.py.txt"),
    ],
)
def test_rounded_activations_cost_a_thousandth_of_a_nat(
    golden_file: GoldenFile, real_model: Callable[[str], Path], name: str, text: str
) -> None:
    found = rounding_divergence(real_model(name), golden_file(f"text/{text}").read_text(), 2)
    assert 1e-5 < found < 1e-3


@pytest.mark.slow
def test_a_few_tokens_at_once_cost_no_more(golden_file: GoldenFile, real_model: Callable[[str], Path]) -> None:
    """Up to four tokens use the kernels of text generation, which are not those of a prompt."""
    text = golden_file("text/eval_en.txt").read_text()
    assert 1e-5 < rounding_divergence(real_model("smollm2-q4_1"), text, 2, batch=4) < 1e-3


@pytest.mark.slow
def test_float_weights_keep_their_precision(
    golden_file: GoldenFile, real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    path = f16_copy(real_model("smollm2-q4_1"), tmp_path / "f16.gguf")
    assert rounding_divergence(path, golden_file("text/eval_en.txt").read_text(), 2) < 1e-4
