"""Encoders and rerankers against transformers: states, vectors and scores, alone and in batches, on every executor."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.embed import embed, pool_texts
from lltool.engine.model import Model, Output, load_model
from lltool.gguf.errors import InputError
from lltool.quant.convert.conversion import convert
from tests.encoder_checkpoints import ENCODERS, RERANKERS, make_encoder
from tests.tiny_checkpoints import make_checkpoint

EXECUTORS = ["reference", "cpu"]
LENGTHS = (1, 7, 16, 17, 63, 64, 65, 128, 130, 300)
TOLERANCE = 1e-4  # two float32 computations of the same sums in another order, as a part of the values' spread

Floats = NDArray[np.float32]


def texts() -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(3)
    return [rng.integers(5, 300, length) for length in LENGTHS]


def make_states(family: str, folder: Path) -> tuple[Path, list[Floats]]:
    """A family's model as F32 GGUF in a folder, and transformers' last hidden states (T, width) of `texts()`."""
    import torch
    import transformers

    make_encoder(ENCODERS[family], folder)
    oracle = getattr(transformers, ENCODERS[family][0]).from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        states = [oracle(torch.tensor(ids[None])).last_hidden_state[0].numpy() for ids in texts()]
    return convert(folder, folder / "model.gguf", "f32"), states


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Floats]]]:
    """`make_states` by the family's name, once for all tests."""
    return cache(lambda family: make_states(family, tmp_path_factory.mktemp("encoder")))


def load(path: Path, executor: str, output: Output = "pooled", **options: Any) -> Model:
    return load_model(path, executor=executor, precision="f32", output=output, **options)


def states_of(path: Path, executor: str) -> Floats:
    """The hidden states of all tokens of `texts()`, computed in one batch."""
    with load(path, executor, "hidden", batch=1000) as model:
        pieces = [(model.new_sequence(), ids, "all") for ids in texts()]
        return np.concatenate([block.copy() for _, block in model.forward(pieces).states()])


def assert_close(found: Floats, wanted: Floats) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() / np.ptp(wanted) < TOLERANCE


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("family", ENCODERS)
def test_states_of_a_batch(encoder: Any, family: str, executor: str) -> None:
    path, wanted = encoder(family)
    assert_close(states_of(path, executor), np.concatenate(wanted))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("family", ENCODERS)
def test_vectors(encoder: Any, family: str, executor: str) -> None:
    """In batches of a context's tokens at most, of which a batch has several texts or one."""
    path, states = encoder(family)
    wanted = {
        "mean": np.stack([rows.mean(axis=0) for rows in states]),
        "cls": np.stack([rows[0] for rows in states]),
        "last": np.stack([rows[-1] for rows in states]),
    }
    with load(path, executor, batch=64) as model:
        assert model.batch == model.context < sum(LENGTHS)
        assert_close(embed(model, texts(), normalize=False), wanted["mean"])
        assert model.free_pages == model.setup.pages
        found = embed(model, texts())
        assert_close(found, wanted["mean"] / np.linalg.norm(wanted["mean"], axis=1, keepdims=True))
    for pooling in ("cls", "last"):
        with load(path, executor, pooling=pooling) as model:
            assert_close(embed(model, texts(), normalize=False), wanted[pooling])


@pytest.mark.parametrize("precision", ["int8", "f32"])
@pytest.mark.parametrize("family", ["bert", "modern-bert", "gemma-embedding"])
def test_a_text_has_the_same_vector_in_every_batch(encoder: Any, family: str, precision: Any) -> None:
    path, _ = encoder(family)
    with load_model(path, precision=precision, output="pooled", deterministic=True, threads=2) as model:
        together = embed(model, texts())
        for ids, vector in zip(texts(), together, strict=True):
            np.testing.assert_array_equal(embed(model, [ids])[0], vector)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Floats]]:
    """Gives a family's reranker and transformers' logits of `texts()`, whose second half is of the second type."""
    import torch
    from transformers import AutoModelForSequenceClassification

    @cache
    def make(family: str) -> tuple[Path, Floats]:
        folder = make_encoder(RERANKERS[family], tmp_path_factory.mktemp("reranker"))
        oracle = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        rows = []
        for ids, types in zip(texts(), types_of(family), strict=True):
            more = {"token_type_ids": torch.tensor(types[None])} if family == "bert" else {}
            with torch.no_grad():
                rows.append(oracle(torch.tensor(ids[None]), **more).logits[0].numpy())
        return convert(folder, folder / "model.gguf", "f32"), np.stack(rows)

    return make


def types_of(family: str) -> list[NDArray[np.int64]]:
    return [(np.arange(len(ids)) >= len(ids) // 2) * int(family == "bert") for ids in texts()]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("family", RERANKERS)
def test_scores(reranker: Any, family: str, executor: str) -> None:
    path, wanted = reranker(family)
    with load(path, executor) as model:
        assert_close(pool_texts(model, texts(), types_of(family)), wanted)


@pytest.fixture(scope="module")
def bert(encoder: Any) -> Path:
    path: Path = encoder("bert")[0]
    return path


@pytest.fixture
def model(bert: Path) -> Iterator[Model]:
    with load_model(bert, output="pooled") as model:
        yield model


def test_what_an_encoder_refuses(model: Model, bert: Path) -> None:
    with pytest.raises(InputError, match=r"an encoder \(bert\) gives vectors of texts, not logits; lltool embed runs"):
        load_model(bert)
    with pytest.raises(InputError, match="an empty text: wanted at least one token"):
        embed(model, [[5], []])
    with pytest.raises(InputError, match="321 tokens do not fit the context of 320"):
        embed(model, [[5] * 321])
    with pytest.raises(InputError, match="token id 1500, wanted one from 0 to 1499"):
        embed(model, [[1500]])
    with pytest.raises(InputError, match="token id 2, wanted one from 0 to 1"):
        pool_texts(model, [[5]], [[2]])
    with pytest.raises(InputError, match="types of other numbers of tokens"):
        pool_texts(model, [[5]], [[0, 0]])
    with pytest.raises(InputError, match="pooling 'cls', but the model was loaded for 'mean'"):
        embed(model, [[5]], pooling="cls")
    sequence = model.new_sequence()
    model.forward([(sequence, [5, 6], "last")])
    with pytest.raises(InputError, match="a sequence of an encoder is one text, evaluated whole"):
        model.forward([(sequence, [7], "last")])


def test_what_a_reranker_and_a_decoder_refuse(reranker: Any, tmp_path: Path) -> None:
    path, _ = reranker("bert")
    with pytest.raises(InputError, match="a reranker gives scores of documents, not logits of tokens"):
        load_model(path)
    with (
        load_model(path, output="pooled") as model,
        pytest.raises(InputError, match="scores of documents, not vectors"),
    ):
        embed(model, [[5]])
    decoder = convert(make_checkpoint("llama", tmp_path), tmp_path / "m.gguf", "f32")
    refused = "pooling 'cls', wanted one of mean, last"
    with load_model(decoder, output="pooled") as model, pytest.raises(InputError, match=refused):
        embed(model, [[5]], pooling="cls")
