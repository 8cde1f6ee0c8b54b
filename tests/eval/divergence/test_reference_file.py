"""The small reference file: what it keeps, how close the divergence from it is, and files that are not references."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.model import Model, load_model
from lltool.eval.divergence.divergence import divergence
from lltool.eval.divergence.reference_file import compare_with_reference, open_reference, write_reference
from lltool.eval.scoring.perplexity import cut_windows, perplexity
from lltool.gguf.digest import sha256_of
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import ValueType, array
from tests.engine.tiny_gguf import VOCAB
from tests.eval.tiny_text_model import TOKENS, random_text, write_text_model

TEXT = random_text(5 * 40)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Model]]:
    """Two models of one vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    paths = [write_text_model(folder / f"{seed}.gguf", seed=seed) for seed in (0, 1)]
    with load_model(paths[0], context=40, batch=50) as first, load_model(paths[1], context=40, batch=50) as second:
        yield first, second


@pytest.fixture(scope="module")
def windows(models: tuple[Model, Model]) -> np.ndarray:
    return cut_windows(models[0].tokenizer.encode(TEXT), 40, None)


def test_all_tokens_kept_give_the_full_divergence(
    models: tuple[Model, Model], windows: np.ndarray, tmp_path: Path
) -> None:
    base, model = models
    write_reference(tmp_path / "full", base, windows, top=VOCAB, sources={"text": "some.txt"})
    reference = open_reference(tmp_path / "full")
    expected = divergence(base, model, TEXT, context=40)
    found = compare_with_reference(reference, model)
    # float32 logarithms of about 5: 3e-7 each, and the divergence is of that order times a few units
    assert found.table == pytest.approx(expected.table, abs=3e-6)
    assert found.mean > 0.1
    assert reference.metadata["text"] == "some.txt"
    assert reference.metadata["model_sha256"] == sha256_of(base.file.paths)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("top", [2, 3, 20])
def test_the_tail_as_one_outcome_is_a_lower_bound(
    models: tuple[Model, Model], windows: np.ndarray, tmp_path: Path, top: int
) -> None:
    base, model = models
    seen: list[tuple[int, int]] = []
    write_reference(tmp_path / "some", base, windows, top=top, progress=lambda *state: seen.append(state))
    reference = open_reference(tmp_path / "some")
    full, found = divergence(base, model, TEXT, context=40), compare_with_reference(reference, model)
    assert seen == [(i, 5) for i in range(1, 6)]
    assert reference.ids.shape == (5 * 19, top)
    assert (found.tokens <= full.tokens + 1e-6).all()
    assert found.mean > 0.1 * full.mean
    # by the definition: the kept tokens one by one, all others as one
    logits = {side: logits_of(side, windows) for side in models}
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in logits.values())
    for row, ids in enumerate(reference.ids):
        one, other = np.append(p[row, ids], 1 - p[row, ids].sum()), np.append(q[row, ids], 1 - q[row, ids].sum())
        assert found.tokens[row] == pytest.approx((one * np.log(one / other)).sum(), abs=1e-5)
    np.testing.assert_allclose(found.table[:, 1:], full.table[:, 1:], atol=1e-6)  # the rest is exact


def logits_of(model: Model, windows: np.ndarray) -> np.ndarray:
    rows = []
    for window in windows:
        sequence = model.new_sequence()
        rows.append(model.forward([(sequence, window[:39], np.arange(20, 39))]).all().astype(np.float64))
        sequence.free()
    return np.concatenate(rows)


def test_a_model_does_not_diverge_from_itself(models: tuple[Model, Model], windows: np.ndarray, tmp_path: Path) -> None:
    write_reference(tmp_path / "own", models[0], windows, top=8)
    found = compare_with_reference(open_reference(tmp_path / "own"), models[0])
    assert found.tokens.max() < 1e-6
    assert found.same_top == 1
    losses = -found.log_probs
    assert np.exp(losses.mean()) == pytest.approx(perplexity(models[0], TEXT, context=40).perplexity)


def test_too_few_tokens_are_refused(models: tuple[Model, Model], windows: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="top 1, wanted at least 2"):
        write_reference(tmp_path / "r", models[0], windows, top=1)


def test_an_interrupted_run_leaves_no_file(
    models: tuple[Model, Model], windows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(file: Any, **arrays: np.ndarray) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    (tmp_path / "r").write_text("an older file")
    monkeypatch.setattr(np, "savez_compressed", fill)
    with pytest.raises(InputError, match=r"r: the disk is full"):
        write_reference(tmp_path / "r", models[0], windows)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert (tmp_path / "r").read_text() == "an older file"


def test_files_that_are_not_a_whole_reference(models: tuple[Model, Model], windows: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "r"
    write_reference(path, models[0], windows, top=4)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"r: not a reference file, or a truncated one"):
            open_reference(path)
    path.write_bytes(whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
    with pytest.raises(InputError):
        open_reference(path)
    path.write_bytes(models[0].file.path.read_bytes())
    with pytest.raises(InputError, match="not a reference file"):
        open_reference(path)
    with pytest.raises(InputError, match="no such file"):
        open_reference(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {"format": "other"}}, "not a reference file of version 1"),
        ({"metadata": {"version": 2}}, "not a reference file of version 1"),
        ({"metadata": []}, "not a reference file of version 1"),
        ({"metadata": {"vocabulary": 5}}, "do not fit together"),
        ({"tails": np.zeros(3, np.float32)}, "do not fit together"),
        ({"tails": np.zeros((95, 1), np.float64)}, "do not fit together"),
        ({"windows": np.zeros(7, np.int32)}, "do not fit together"),
        ({"windows": np.ones((5, 40), np.int32)}, "its tokens do not match their recorded digest"),
        ({"ids": np.array([None])}, "not a reference file"),
    ],
)
def test_archives_of_other_content(
    models: tuple[Model, Model], windows: np.ndarray, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "r.npz"
    write_reference(path, models[0], windows, top=4)
    with np.load(path) as archive:
        arrays = dict(archive)
    metadata = changes.get("metadata", {})
    if isinstance(metadata, dict):
        metadata = json.loads(str(arrays["metadata"])) | metadata
    np.savez(path, **{**arrays, **changes, "metadata": np.array(json.dumps(metadata))})
    with pytest.raises(InputError, match=message):
        open_reference(path)


def test_references_of_another_vocabulary(models: tuple[Model, Model], windows: np.ndarray, tmp_path: Path) -> None:
    write_reference(tmp_path / "r", models[0], windows, top=4, sources={"text": "first.txt"})
    reference = open_reference(tmp_path / "r")
    tokens = array(ValueType.STRING, [*TOKENS[:40], TOKENS[41], TOKENS[40], *TOKENS[42:]])
    path = write_text_model(tmp_path / "other.gguf", **{"tokenizer.ggml.tokens": tokens})
    with load_model(path, context=40) as other:
        with pytest.raises(InputError, match=r"has 96 tokens that are not those of .*other\.gguf"):
            compare_with_reference(reference, other)
        with pytest.raises(InputError, match=r"token 40 is 'I', but 'H' in .*0\.gguf"):
            divergence(models[0], other, TEXT, context=40)
