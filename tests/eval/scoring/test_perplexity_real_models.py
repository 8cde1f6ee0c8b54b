"""Perplexity of real models against llama-perplexity's figures."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import load_model
from lltool.eval.scoring.perplexity import perplexity
from tests.conftest import GoldenFile
from tests.eval.derived_models import f16_copy, off_grid_twin


def test_windows_at_once_fit_the_cache(real_model: Callable[[str], Path]) -> None:
    ids = list(range(100, 130))
    with load_model(real_model("smollm2-q4_1"), context=10, sequences=1, precision="f32") as model:
        assert (model.batch, model.setup.pages) == (64, 1)  # a page is larger than the context
        alone = perplexity(model, ids, context=10)
    with load_model(real_model("smollm2-q4_1"), context=10, sequences=3, precision="f32") as model:
        assert perplexity(model, ids, context=10).perplexity == pytest.approx(alone.perplexity, rel=1e-4)


def golden(golden_file: GoldenFile, name: str) -> tuple[list[float], float, float]:
    """Running values, final value and its error as llama-perplexity printed them."""
    text = golden_file(f"perplexity/{name}.txt").read_text()
    final = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", text)
    assert final
    running = [float(value) for value in re.findall(r"\[\d+\]([\d.]+)", text)]
    return running, float(final[1]), float(final[2])


@pytest.fixture(scope="module")
def model_file(
    real_model: Callable[[str], Path], golden_file: GoldenFile, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Sample models by name, and what is made of SmolLM2: its weights as F16, and its off-grid twin."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def find(name: str) -> Path:
        sample, _, kind = name.partition(" ")
        source, target = real_model(sample), folder / f"{kind}.gguf"
        if kind == "F16":
            return f16_copy(source, target)
        return off_grid_twin(golden_file("offgrid.py"), source, target) if kind == "twin" else source

    return find


def test_running_values_equal_llama_perplexity(golden_file: GoldenFile, model_file: Callable[[str], Path]) -> None:
    running, _, _ = golden(golden_file, "smollm2_f16")
    text = golden_file("text/eval_en.txt").read_text()
    with load_model(model_file("smollm2-q4_1 F16"), context=512) as model:
        result = perplexity(model, text[:8000], context=512, chunks=2)
    # Both sides compute in float32; llama.cpp rounds what is multiplied with F16 weights to F16.
    assert result.running == pytest.approx(running[:2], rel=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figures", "text"),
    [
        ("smollm2-q4_1 F16", "smollm2_f16", "eval_en.txt"),
        ("smollm2-q4_1 twin", "offgrid_f16", "eval_en.txt"),
        ("smollm2-q4_1", "smollm2_q4_1_as_shipped", "eval_en.txt"),
        ("gemma3-270m-q4_k_m", "gemma3_270m_q4_k_m_as_shipped", "eval_en.txt"),
        ("qwen25coder-0.5b-q4_k_m", "qwen25coder05b_q4_k_m_as_shipped", "eval_en.txt"),
        ("qwen25coder-0.5b-q4_k_m", "qwen25coder05b_q4_k_m_as_shipped_code", "eval_code.py.txt"),
    ],
)
def test_perplexity_equals_llama_perplexity(
    golden_file: GoldenFile, model_file: Callable[[str], Path], name: str, figures: str, text: str
) -> None:
    running, final, error = golden(golden_file, figures)
    with load_model(model_file(name), context=512, deterministic=True) as model:
        result = perplexity(model, golden_file(f"text/{text}").read_text(), context=512, chunks=len(running))
    assert running[-1] == final
    assert result.perplexity == pytest.approx(final, rel=2e-3)
    assert result.error == pytest.approx(error, rel=1e-2)
    if "F16" in name or "twin" in name:
        assert result.running == pytest.approx(running, rel=5e-4)
    else:
        # Both sides round activations to 8 bits, but not in the same way. That changes a window of 256 scored tokens by
        # 1 %, for Gemma by up to 4 % (exact arithmetic is as far from either), and n windows by less.
        gap = np.abs(np.array(result.running) / running - 1)
        assert (gap < 2e-3 + 2e-2 / np.sqrt(np.arange(1, len(gap) + 1))).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chunks", "bound"),
    [
        # llama.cpp loses 6.2 % on these windows, this engine 5.9 %, and 17 % where heads are not transformed.
        ("smollm2-q4_1", 10, 1.08),
        # 13 %; without what all keys have in common taken out, perplexity more than doubles.
        ("qwen25coder-0.5b-q4_k_m", 2, 1.3),
    ],
)
def test_a_cache_of_4_bits_costs_little(
    golden_file: GoldenFile, model_file: Callable[[str], Path], name: str, chunks: int, bound: float
) -> None:
    text = golden_file("text/eval_en.txt").read_text()
    values = []
    for kind in ("f16", "q4_0"):
        with load_model(model_file(name), context=512, cache_type_k=kind, cache_type_v=kind) as model:
            values.append(perplexity(model, text, context=512, chunks=chunks).perplexity)
    assert values[1] < bound * values[0]


@pytest.mark.slow
def test_strided_values_equal_llama_perplexitys(golden_file: GoldenFile, model_file: Callable[[str], Path]) -> None:
    text = golden_file("text/eval_en.txt").read_text()
    with load_model(model_file("smollm2-q4_1 F16"), context=768) as model:
        result = perplexity(model, text, context=512, method="strided", stride=256, chunks=4)
    # llama-perplexity -c 512 -b 512 --ppl-stride 256 --chunks 4 on the same weights and text
    assert result.running == pytest.approx([16.2282, 21.5285, 24.9742, 23.7934], rel=5e-4)


_MEASURE_PEAK = """
import re, sys
from pathlib import Path
from lltool.engine.model import load_model
from lltool.eval.scoring.perplexity import perplexity
context = int(sys.argv[2])
with load_model(sys.argv[1], context=context) as model:
    perplexity(model, [100, 200] * context, context=context, chunks=1)
# Not ru_maxrss: that begins with the parent's.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


@pytest.mark.slow
def test_memory_grows_with_the_context_by_the_cache_only(real_model: Callable[[str], Path]) -> None:
    peaks = []
    for context in (512, 4096):
        command = [sys.executable, "-c", _MEASURE_PEAK, str(real_model("smollm2-q4_1")), str(context)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    cache = (4096 - 512) * 30 * 2 * 192 * 2  # bytes: layers, keys and values, width, F16
    assert peaks[1] - peaks[0] == pytest.approx(cache, abs=16 << 20)  # the logits scored would be 400 MB
