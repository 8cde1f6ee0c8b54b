"""Divergence of a pair of models in lockstep against llama-perplexity's on the same pairs of files."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lltool.engine.model import load_model
from lltool.eval.divergence.divergence import divergence
from lltool.eval.divergence.summary import summarize_divergence
from lltool.gguf.errors import InputError
from lltool.tools.cli import main
from tests.conftest import GoldenFile
from tests.eval.tiny_text_model import random_text, write_text_model

Twin = Callable[[str], Path]


@pytest.fixture(scope="session")
def twin(golden_file: GoldenFile, real_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """SmolLM2's off-grid twin in F16, or quantized to the type in the figures' names, as llama-quantize does."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("twin")
    base = folder / "F16.gguf"
    source = real_model("smollm2-q4_1")
    subprocess.run([sys.executable, golden_file("offgrid.py"), source, base], check=True)

    def make(name: str) -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            options = ["--pure"] * ("pure" in name)
            if "imatrix" in name:
                options += ["--imatrix", str(golden_file("imatrix/offgrid-imatrix.gguf"))]
            kind = re.sub("_(pure|imatrix)", "", name)
            assert main(["quantize", *options, str(base), str(path), kind]) == 0
        return path

    return make


def golden(golden_file: GoldenFile, name: str, chunks: int) -> list[float]:
    """PPL, ln of the ratio, KLD, RMS Δp, same top, each with its error, after so many chunks."""
    text = golden_file(f"perplexity/kld_offgrid_{name}_vs_f16.txt").read_text()
    line = re.search(rf"^ *{chunks}  .*$", text, re.MULTILINE)
    assert line
    return [float(value) for value in re.findall(r"-?\d+\.\d+", line[0])]


# llama.cpp rounds activations to 8 bits with one scale for 32 or 256 columns; lltool keeps the largest as floats. So
# llama.cpp's figures are larger by what its rounding adds: at most so much divergence, and so many percent of RMS
# change. It shows where the format's own divergence is small, and where llama.cpp's scales are for 256.
ROUNDING = (0.009, 2.3)
NO_ROUNDING = (0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chunks", "rounding"),
    [
        ("Q8_0_pure", 20, (0.005, 1.6)),
        ("Q4_0_pure", 20, NO_ROUNDING),
        *((name, 4, NO_ROUNDING) for name in ("Q5_1_pure", "Q5_0_pure", "Q4_1_pure", "Q4_0_pure_imatrix")),
        *((name, 4, NO_ROUNDING) for name in ("Q3_K_M_imatrix", "Q2_K_imatrix")),
        *((name, 4, ROUNDING) for name in ("IQ4_XS_imatrix", "Q4_K_M", "Q4_K_M_imatrix", "Q4_K_S_imatrix")),
        ("Q6_K", 20, ROUNDING),
    ],
)
def test_divergence_equals_llama_perplexitys(
    golden_file: GoldenFile, twin: Twin, name: str, chunks: int, rounding: tuple[float, float]
) -> None:
    text = golden_file("text/eval_en.txt").read_text()
    with (
        load_model(twin("F16"), context=512, deterministic=True) as base,
        load_model(twin(name), context=512, deterministic=True) as model,
    ):
        found = summarize_divergence(divergence(base, model, text, chunks=chunks))
    _, _, ratio, _, kld, error, rms, _, same, same_error = golden(golden_file, name, chunks)
    divergence_added, rms_added = rounding
    assert 0.97 * kld - divergence_added <= found.divergence.value <= 1.03 * kld
    assert 0.94 * math.sqrt(rms**2 - min(rms, rms_added) ** 2) <= found.change_rms.value * 100 <= 1.06 * rms
    assert found.divergence.error < 1.25 * error
    assert found.same_top.value * 100 > same - 3 * same_error
    assert found.log_ratio.value == pytest.approx(ratio, abs=0.03)
    if rounding == NO_ROUNDING:
        assert found.divergence.error == pytest.approx(error, rel=0.25)
        assert found.same_top.value * 100 == pytest.approx(same, abs=3 * same_error)


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    sound, broken = (write_text_model(tmp_path / f"{n}.gguf", broken=n) for n in ("", "z"))
    text = random_text(150, without="z") + "z" + random_text(150, seed=1, without="z")
    with (
        load_model(sound, context=50) as base,
        load_model(broken, context=50) as model,
        pytest.raises(InputError, match=r"z\.gguf: NaN or infinity in the logits of chunk 1; is the file damaged"),
    ):
        divergence(base, model, text, context=50)


def test_a_frame_has_a_row_for_each_scored_token(tmp_path: Path) -> None:
    paths = [write_text_model(tmp_path / f"{seed}.gguf", seed=seed) for seed in (0, 1)]
    with load_model(paths[0], context=50) as base, load_model(paths[1], context=50) as model:
        result = divergence(base, model, random_text(150), context=50)
    frame = result.to_pandas()
    assert frame.divergence.mean() == pytest.approx(result.mean)
    assert (frame.base_top == frame.top).mean() == result.same_top
    assert frame.log_prob.tolist() == result.log_probs.tolist()
