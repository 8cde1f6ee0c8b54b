"""Divergence by its definition, programs cut into parts, and probes against whole runs of damaged models."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.model import Model, load_model
from lltool.engine.operations.embed import Embed
from lltool.engine.reference.compare import divergences
from lltool.engine.segments import find_cuts, parallel_batch, part_from, part_until
from lltool.eval.divergence.divergence import DivergenceResult, divergence
from lltool.eval.search.sensitivity import pick_windows, probe, run_logits
from tests.engine import tiny_gguf


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())


def exact(base: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sum of p * log(p / q) in float64."""
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(axis=1, keepdims=True) for x in (base, other))
    result: np.ndarray = (p * np.log(p / q)).sum(axis=1)
    return result


def test_divergences_equal_the_definition() -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=(9, 500)).astype(np.float32) * 4
    near = base + random.normal(size=base.shape).astype(np.float32) * 0.01
    far = random.normal(size=base.shape).astype(np.float32) * 4
    for other in (near, far, base + 30, base):
        # float32 sums of logits around 10: a few ulps of 10 each
        assert divergences(base, other) == pytest.approx(exact(base, other), rel=1e-4, abs=4e-6)


def logits_of(model: Model, tokens: np.ndarray) -> NDArray[np.float32]:
    sequence = model.new_sequence()
    out: NDArray[np.float32] = model.forward([(sequence, tokens, "all")]).all()
    sequence.free()
    return out


def test_divergence_scores_second_halves(tiny: Path, tmp_path: Path) -> None:
    arrays = tiny_gguf.tensors()
    arrays["blk.1.ffn_up.weight"] = arrays["blk.1.ffn_up.weight"][::-1].copy()
    changed = tiny_gguf.write_model(tmp_path / "changed.gguf", tiny_gguf.metadata(), arrays)
    ids = np.random.default_rng(3).integers(0, tiny_gguf.VOCAB, 100)
    seen: list[tuple[int, int, DivergenceResult]] = []
    with load_model(tiny, batch=7, context=20) as base, load_model(changed, batch=7, context=20) as model:
        base._open().tokenizer = model._open().tokenizer = type(
            "Tokenizer", (), {"bos": None, "add_bos": False, "tokens": ()}
        )()
        result = divergence(base, model, ids.tolist(), context=20, progress=lambda *state: seen.append(state))
    with load_model(tiny, context=20) as base, load_model(changed, context=20) as model:
        rows = [(logits_of(base, part)[10:19], logits_of(model, part)[10:19]) for part in ids.reshape(5, 20)]
    expected = np.concatenate([exact(*pair) for pair in rows])
    assert result.tokens == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert result.mean == pytest.approx(expected.mean(), rel=1e-3)
    assert result.error == pytest.approx(expected.std() / np.sqrt(44), rel=1e-3)
    assert result.same_top == np.mean([a.argmax() == b.argmax() for pair in rows for a, b in zip(*pair, strict=True)])
    assert [state[:2] for state in seen] == [(i, 5) for i in range(1, 6)]
    assert seen[-1][2].mean == pytest.approx(result.mean)


def test_a_program_cut_anywhere_gives_the_same_logits(tiny: Path) -> None:
    windows = np.random.default_rng(4).integers(0, tiny_gguf.VOCAB, (3, 70)).astype(np.int32)
    batch, pages = parallel_batch(windows, np.arange(0, windows.size, 5))
    whole = load_model(tiny, precision="f32").program
    cuts = find_cuts(whole)
    assert len(cuts) == 1 + 2 * tiny_gguf.LAYERS  # behind the embedding and behind each half of a layer
    assert isinstance(whole.ops[cuts[0][0] - 1], Embed)
    assert cuts[-1][0] == whole.head
    expected = run_logits(whole, batch, pages, threads=1)
    all_rows, _ = parallel_batch(windows, np.arange(windows.size))
    for cut in cuts:
        kept = run_logits(part_until(whole, cut), all_rows, pages, threads=1)
        rest, _ = parallel_batch(np.arange(windows.size, dtype=np.int32).reshape(windows.shape), batch.outputs)
        assert np.array_equal(run_logits(part_from(whole, cut, kept), rest, pages, threads=1), expected)


def test_probes_equal_whole_runs_of_the_damaged_model(tiny: Path) -> None:
    def damage(name: str, weights: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(len(name)).normal(size=weights.shape)
        return np.asarray(weights + 0.05 * noise, np.float32)

    program = load_model(tiny, precision="f32").program
    names = [name for name, weight in program.weights.items() if len(weight.shape) == 2]
    windows = np.random.default_rng(5).integers(0, tiny_gguf.VOCAB, (2, 40)).astype(np.int32)
    found: dict[str, float] = {}
    probe(program, windows, names, damage, found.__setitem__, threads=2)
    assert sorted(found) == sorted(names)

    scored = np.concatenate([np.arange(10, 39), np.arange(50, 79)])
    batch, pages = parallel_batch(windows, scored)
    base = run_logits(program, batch, pages, threads=1)
    arrays = tiny_gguf.tensors()
    for name in ("token_embd.weight", "blk.0.attn_v.weight", "blk.1.attn_output.weight", "blk.2.ffn_down.weight"):
        path = tiny.with_name("damaged.gguf")
        tiny_gguf.write_model(path, tiny_gguf.metadata(), arrays | {name: damage(name, arrays[name])})
        other = run_logits(load_model(path, precision="f32").program, batch, pages, threads=1)
        assert found[name] == pytest.approx(exact(base, other).mean(), rel=1e-3), name


def test_windows_are_spread_over_the_text() -> None:
    assert pick_windows(range(100), 3, 10, None).tolist() == [list(range(s, s + 10)) for s in (0, 45, 90)]
    assert pick_windows(range(100), 3, 10, 7)[1].tolist() == [7, *range(46, 55)]
    assert pick_windows(range(25), 5, 10, None).shape == (2, 10)  # no more than the text has
    assert pick_windows(range(5), 2, 10, None).tolist() == [[0, 1, 2, 3, 4]]
