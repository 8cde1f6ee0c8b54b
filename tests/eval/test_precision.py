"""How far rounded activations take real models from float32: the divergence of one file at two precisions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.engine.model import load_model
from lltool.eval.divergence import divergence
from tests.eval.derived_models import f16_copy


def rounding_divergence(path: Path, text: str, windows: int, *, batch: int = 512) -> float:
    """Nats a token of int8 from f32, in windows of 512 tokens of which `batch` are read at once."""
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
    shared: Path, real_model: Callable[[str], Path], name: str, text: str
) -> None:
    found = rounding_divergence(real_model(name), (shared / "text" / text).read_text(), 2)
    assert 1e-5 < found < 1e-3


@pytest.mark.slow
def test_a_few_tokens_at_once_cost_no_more(shared: Path, real_model: Callable[[str], Path]) -> None:
    """Up to four tokens are multiplied as when text is generated, by other kernels than a prompt."""
    text = (shared / "text" / "eval_en.txt").read_text()
    assert 1e-5 < rounding_divergence(real_model("smollm2-q4_1"), text, 2, batch=4) < 1e-3


@pytest.mark.slow
def test_float_weights_keep_their_precision(shared: Path, real_model: Callable[[str], Path], tmp_path: Path) -> None:
    path = f16_copy(real_model("smollm2-q4_1"), tmp_path / "f16.gguf")
    assert rounding_divergence(path, (shared / "text" / "eval_en.txt").read_text(), 2) < 1e-4
