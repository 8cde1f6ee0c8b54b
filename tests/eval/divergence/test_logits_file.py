"""llama-perplexity's file of probabilities, against the definition and, if installed, against llama-perplexity."""

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.model import Model, load_model
from lltool.eval.divergence.divergence import divergence
from lltool.eval.divergence.logits_file import _encode, compare_with_file, open_logits_file, write_logits_file
from lltool.eval.divergence.summary import summarize_divergence
from lltool.gguf.errors import FileChanged, InputError
from lltool.gguf.metadata import boolean, u32
from lltool.tools.cli import main
from tests.conftest import GoldenFile
from tests.engine.tiny_gguf import VOCAB
from tests.eval.tiny_text_model import random_text, write_text_model

CONTEXT, SCORED = 40, 19
TEXT = random_text(5 * CONTEXT + 7)


@pytest.fixture(scope="module", params=[40, 100, 15], ids=lambda batch: f"batch {batch}")
def models(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[tuple[Model, Model]]:
    """Two models whose windows begin with BOS, one window in a batch, several, and parts of one."""
    folder = tmp_path_factory.mktemp("models")
    bos = {"tokenizer.ggml.bos_token_id": u32(7), "tokenizer.ggml.add_bos_token": boolean(True)}
    paths = [write_text_model(folder / f"{seed}.gguf", seed=seed, **bos) for seed in (0, 1)]
    with (
        load_model(paths[0], context=CONTEXT, sequences=3, batch=request.param, precision="f32") as first,
        load_model(paths[1], context=CONTEXT, sequences=3, batch=request.param, precision="f32") as second,
    ):
        yield first, second


@pytest.fixture
def path(models: tuple[Model, Model], tmp_path: Path) -> Path:
    write_logits_file(tmp_path / "logits", models[0], models[0].tokenizer.encode(TEXT), context=CONTEXT)
    return tmp_path / "logits"


def log_probs_of(model: Model, windows: np.ndarray) -> np.ndarray:
    rows = []
    for window in windows:
        sequence = model.new_sequence()
        for token in window[:20]:
            model.forward([(sequence, [token], "none")])
        for token in window[20:39]:
            rows.append(model.forward([(sequence, [token], "all")]).all()[0].astype(np.float64))
        sequence.free()
    logits = np.array(rows)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_the_bytes_are_those_of_the_format(models: tuple[Model, Model], path: Path) -> None:
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    assert struct.unpack("<3i", data[8:20]) == (CONTEXT, VOCAB, 5)
    ids = models[0].tokenizer.encode(TEXT)
    tokens = np.frombuffer(data, "<i4", 5 * CONTEXT, 20).reshape(5, CONTEXT)
    assert tokens.ravel().tolist() == ids[: 5 * CONTEXT]
    windows = tokens.copy()
    windows[:, 0] = 7
    records = np.frombuffer(data, np.dtype([("scale", "<f4"), ("lowest", "<f4"), ("q", "<u2", VOCAB)]), -1, 820)
    found = records["q"] * records["scale"][:, None] + records["lowest"][:, None]
    expected = log_probs_of(models[0], windows)
    assert len(found) == 5 * SCORED
    # half a step of a range of 16 at most, and int8 activations in batches of other sizes
    assert np.abs(found - expected).max() < 16 / 65535 / 2 + 2e-5
    assert (records["q"].max(axis=1) == 65535).all()


def test_rows_of_odd_width_wide_range_and_no_range() -> None:
    logits = np.array([[0, -1, -20, -15.9, 3], [2, 2, 2, 2, 2]], np.float32)
    sums = np.log(np.exp(logits.astype(float)).sum(axis=1))
    rows = _encode(logits, sums)
    assert rows.shape == (2, 4 + 6)
    scale, lowest = rows[:, :4].copy().view("<f4").T
    np.testing.assert_allclose(scale, [16 / 65535, 0], rtol=1e-6)
    np.testing.assert_allclose(lowest, [3 - 16 - sums[0], -np.log(5)], rtol=1e-6)
    assert rows[0, 4:].tolist() == [round(13 * 65535 / 16), round(12 * 65535 / 16), 0, 0, 65535, 0]
    assert not rows[1, 4:].any()


def test_divergence_is_llama_perplexitys_sum(models: tuple[Model, Model], path: Path) -> None:
    """Over tokens of ln P above -16, with P as the file rounds it."""
    file = open_logits_file(path)
    found = compare_with_file(file, models[1])
    assert (found.windows[:, 0] == 7).all()
    base, other = file.log_probs(slice(None)).astype(float), log_probs_of(models[1], found.windows)
    targets = found.windows[:, 21:].ravel()
    rows = np.arange(len(base))
    expected = (np.where(base > -16, np.exp(base), 0) * (base - other)).sum(axis=1)
    np.testing.assert_allclose(found.tokens, expected, atol=1e-4)
    np.testing.assert_allclose(found.base_log_probs, base[rows, targets], atol=1e-6)
    np.testing.assert_allclose(found.log_probs, other[rows, targets], atol=1e-4)
    assert np.array_equal(found.base_top, base.argmax(axis=1))
    assert np.array_equal(found.top, other.argmax(axis=1))
    pair = divergence(*models, TEXT, context=CONTEXT)
    assert found.mean == pytest.approx(pair.mean, rel=1e-3)
    assert compare_with_file(file.first(2), models[1]).tokens == pytest.approx(found.tokens[: 2 * SCORED], abs=1e-5)


def test_unlikely_tokens_are_left_out(models: tuple[Model, Model], path: Path) -> None:
    """In a record with most of P left out, the sum is over the rest of P, which is not rescaled to 1."""
    data = bytearray(path.read_bytes())
    scale, lowest = 16 / 65535, -17.0
    numbers = np.zeros(VOCAB, "<u2")
    numbers[3] = 65535  # ln P = -1; all others -17
    data[820 : 820 + 8 + 2 * VOCAB] = struct.pack("<2f", scale, lowest) + numbers.tobytes()
    path.write_bytes(data)
    found = compare_with_file(open_logits_file(path), models[1])
    log_q = log_probs_of(models[1], found.windows[:1])[0, 3]
    assert found.tokens[0] == pytest.approx(np.exp(-1) * (-1 - log_q), abs=1e-5)
    assert found.base_top[0] == 3


def test_a_file_that_is_truncated_during_a_comparison(models: tuple[Model, Model], path: Path) -> None:
    file = open_logits_file(path)
    os.truncate(path, 1000)
    with pytest.raises(FileChanged, match=r"logits: changed while it was read, from [0-9]+ bytes to 1000"):
        compare_with_file(file, models[1])


def test_truncated_and_foreign_files(models: tuple[Model, Model], path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()

    def refuse(data: bytes, message: str) -> None:
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            open_logits_file(path)

    for length in (0, 7, 8, 19):
        refuse(whole[:length], "not a file of llama-perplexity's logits")
    for length in (20, 500, 821, len(whole) - 2):
        refuse(whole[:length], rf"{length} bytes, but 5 chunks of 40 tokens take {len(whole)}; write it again")
    refuse(whole + b"\0", "write it again")
    refuse(whole[:8] + struct.pack("<3i", 40, VOCAB, -1) + whole[20:], "-1 chunks of 40 tokens.*damaged")
    refuse(whole[:20] + b"\xff" * 4 + whole[24:], "has a token outside its vocabulary of 96")
    refuse(b"GGUF" + whole[4:], "not a file of llama-perplexity's logits")
    with pytest.raises(InputError, match="no such file"):
        open_logits_file(tmp_path / "none")


def test_a_file_of_another_vocabulary(models: tuple[Model, Model], path: Path) -> None:
    data = path.read_bytes()
    rows = np.frombuffer(data, "<u2", -1, 820).reshape(-1, 4 + VOCAB)
    narrow = np.ascontiguousarray(rows[:, :-2]).tobytes()
    tokens = np.minimum(np.frombuffer(data, "<i4", 200, 20), VOCAB - 3)
    path.write_bytes(data[:12] + struct.pack("<2i", VOCAB - 2, 5) + tokens.tobytes() + narrow)
    with pytest.raises(InputError, match=r"logits: has a vocabulary of 94 tokens, but .*1\.gguf has 96"):
        compare_with_file(open_logits_file(path), models[1])


def test_an_interrupted_run_leaves_no_file(models: tuple[Model, Model], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_logits_file(tmp_path / "l", models[0], models[0].tokenizer.encode(TEXT), context=CONTEXT, progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.rival
def test_llama_perplexity_reads_ours_and_we_read_its(
    real_model: Callable[[str], Path], golden_file: GoldenFile, tmp_path: Path
) -> None:
    tool = shutil.which("llama-perplexity")
    if not tool:
        pytest.skip("needs llama-perplexity on the path")
    base, other = real_model("smollm2-q4_1"), tmp_path / "other.gguf"
    assert main(["quantize", "--allow-requantize", "--pure", str(base), str(other), "Q4_0"]) == 0
    text, chunks, context = golden_file("text/eval_en.txt"), 4, 128

    def run(*arguments: str | Path) -> str:
        fixed = ["-c", str(context), "--chunks", str(chunks), "-f", text, "-t", "2"]
        done = subprocess.run([tool, *arguments, *fixed], capture_output=True, check=True)
        return (done.stdout + done.stderr).decode(errors="replace")

    def mean(output: str) -> float:
        found = re.search(r"Mean    KLD: +([\d.]+)", output)
        assert found, output
        return float(found[1])

    run("-m", base, "--kl-divergence-base", tmp_path / "theirs")
    with load_model(base, context=context) as model:
        ids = model.tokenizer.encode(text.read_text())
        write_logits_file(tmp_path / "ours", model, ids, context=context, chunks=chunks)
    with load_model(other, context=context) as model:
        ours, theirs = (compare_with_file(open_logits_file(tmp_path / name), model) for name in ("ours", "theirs"))
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size
    found = [
        mean(run("-m", other, "--kl-divergence", "--kl-divergence-base", tmp_path / n)) for n in ("ours", "theirs")
    ]
    # 8-bit activations are rounded in other places, which moves a few tokens by some percent
    assert [summarize_divergence(result).divergence.value for result in (ours, theirs)] == pytest.approx(
        found, rel=0.05
    )
