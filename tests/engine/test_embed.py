"""Embeddings: hidden states against transformers', pooled texts in one batch and alone, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.embed import embed
from lltool.engine.generate import generate_all
from lltool.engine.model import Model, load_model
from lltool.engine.sampling import Sampler
from lltool.gguf.errors import InputError
from lltool.quant.convert.conversion import convert
from tests.tiny_checkpoints import make_checkpoint

TEXTS = [[5, 6, 7, 8, 9, 10, 11], list(range(20, 90)), [42]]
TOLERANCE = 1e-4  # two float32 computations of the same sums in another order, as a part of the values' spread


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def path(checkpoint: Path) -> Path:
    return convert(checkpoint, checkpoint / "model.gguf", "f32")


@pytest.fixture(scope="module")
def states(checkpoint: Path) -> list[NDArray[np.float64]]:
    """What transformers multiplies with the output matrix, (T, width), for each of TEXTS."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return [model(torch.tensor([ids])).last_hidden_state[0].double().numpy() for ids in TEXTS]


@pytest.fixture(params=["cpu", "reference"])
def model(request: pytest.FixtureRequest, path: Path) -> Iterator[Model]:
    options: dict[str, Any] = {"precision": "f32", "deterministic": True} if request.param == "cpu" else {}
    with load_model(path, executor=request.param, threads=1, output="hidden", batch=32, **options) as model:
        yield model


def test_hidden_states_are_those_of_transformers(model: Model, states: list[NDArray[np.float64]]) -> None:
    sequence = model.new_sequence()
    found = np.concatenate([block.copy() for _, block in model.forward([(sequence, TEXTS[0], "all")]).states()])
    assert found.shape == states[0].shape == (7, model.config.width)
    assert np.abs(found - states[0]).max() < TOLERANCE * states[0].std()


def test_embeddings_are_pooled_states(model: Model, states: list[NDArray[np.float64]]) -> None:
    """The second text is longer than a batch; one token has kernels of its own."""
    room = model.free_pages
    mean = np.array([rows.mean(axis=0) for rows in states])
    last = np.array([rows[-1] for rows in states])
    assert np.abs(embed(model, TEXTS, normalize=False) - mean).max() < TOLERANCE * mean.std()
    assert np.abs(embed(model, TEXTS, pooling="last", normalize=False) - last).max() < TOLERANCE * last.std()
    found = embed(model, TEXTS)
    lengths = np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.abs(found - mean / lengths).max() < TOLERANCE
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    assert found.dtype == np.float32
    assert model.free_pages == room
    assert embed(model, []).shape == (0, model.config.width)


def test_a_text_has_the_same_vector_in_every_batch(path: Path) -> None:
    with load_model(path, threads=1, output="hidden", deterministic=True) as model:
        together = embed(model, TEXTS)
        for ids, vector in zip(TEXTS, together, strict=True):
            np.testing.assert_array_equal(embed(model, [ids])[0], vector)


def test_each_kind_of_model_refuses_what_the_other_is_for(path: Path) -> None:
    wrong = r"model\.gguf: was loaded with output='logits', and this wants 'hidden'"
    with load_model(path, threads=1) as usual, pytest.raises(InputError, match=wrong):
        embed(usual, TEXTS)
    with load_model(path, threads=1, output="hidden") as hidden:
        logits = hidden.forward([(hidden.new_sequence(), [1, 2], "all")])
        wrong = "was loaded with output='hidden', and this wants 'logits'"
        with pytest.raises(InputError, match=wrong):
            logits.score(np.array([1, 2]))
        with pytest.raises(InputError, match=wrong):
            hidden.evaluate(hidden.new_sequence(), [1, 2])
        with pytest.raises(InputError, match=wrong):
            generate_all(hidden, [[1]], samplers=[Sampler()])
        with pytest.raises(InputError, match="an empty text"):
            embed(hidden, [[1], []])
        with pytest.raises(InputError, match="do not fit the context"):
            embed(hidden, [[1] * (hidden.context + 1)])
    with pytest.raises(InputError, match="output 'states', wanted one of logits, hidden"):
        load_model(path, output="states")  # type: ignore[arg-type]
