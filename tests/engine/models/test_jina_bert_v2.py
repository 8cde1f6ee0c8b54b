"""Jina's embeddings v2, which transformers lacks: vectors against the model written out in numpy."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.embed import embed
from lltool.engine.model import load_model
from lltool.engine.operations.elementwise import gelu
from lltool.quant.convert.conversion import convert
from tests.tokenizer_kinds import save, wordpiece

WIDTH, HIDDEN, LAYERS, HEADS = 48, 80, 3, 3
SLOPES = (2**-4.0, 2**-8.0, 2**-2.0)  # of three heads: those of two, and the first of four that lies between
LENGTHS = (1, 9, 64, 200)

Weights = dict[str, NDArray[np.float32]]


def make_weights() -> Weights:
    """Tensors under the names of JinaBertModel (jina-embeddings-v2-base-en)."""
    rng = np.random.default_rng(4)
    weights: Weights = {}

    def add(name: str, *shape: int) -> None:
        kind = name.rsplit(".", 1)[1]
        if len(shape) == 1:
            values = rng.standard_normal(shape) * 0.2 + float(kind == "weight")
        else:
            values = rng.standard_normal(shape) * 1.3 / shape[-1] ** 0.5
        weights[name] = values.astype(np.float32)

    def norm(name: str) -> None:
        add(f"{name}.weight", WIDTH)
        add(f"{name}.bias", WIDTH)

    def dense(name: str, inside: int, outside: int) -> None:
        add(f"{name}.weight", outside, inside)
        add(f"{name}.bias", outside)

    add("embeddings.word_embeddings.weight", 1500, WIDTH)
    add("embeddings.token_type_embeddings.weight", 2, WIDTH)
    norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        base = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            dense(f"{base}attention.self.{part}", WIDTH, WIDTH)
        dense(f"{base}attention.output.dense", WIDTH, WIDTH)
        norm(f"{base}attention.output.LayerNorm")
        add(f"{base}mlp.gated_layers.weight", 2 * HIDDEN, WIDTH)
        dense(f"{base}mlp.wo", HIDDEN, WIDTH)
        norm(f"{base}mlp.layernorm")
    return weights


def run(weights: Weights, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The last hidden states (T, WIDTH) in float64."""

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
        return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return np.asarray(x @ weights[f"{name}.weight"].T.astype(np.float64) + weights[f"{name}.bias"])

    x = weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    distance = np.abs(np.arange(len(ids))[:, None] - np.arange(len(ids)))
    dim = WIDTH // HEADS
    for layer in range(LAYERS):
        base = f"encoder.layer.{layer}."
        q, k, v = (dense(x, f"{base}attention.self.{part}") for part in ("query", "key", "value"))
        mixed = np.empty_like(x)
        for head, slope in enumerate(SLOPES):
            part = slice(head * dim, (head + 1) * dim)
            scores = q[:, part] @ k[:, part].T / dim**0.5 - slope * distance
            chances = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, part] = chances @ v[:, part] / chances.sum(axis=1, keepdims=True)
        x = norm(x + dense(mixed, f"{base}attention.output.dense"), f"{base}attention.output.LayerNorm")
        both = x @ weights[f"{base}mlp.gated_layers.weight"].T.astype(np.float64)
        hidden = gelu(both[:, :HIDDEN]) * both[:, HIDDEN:]
        x = norm(x + dense(hidden, f"{base}mlp.wo"), f"{base}mlp.layernorm")
    return x


@pytest.mark.parametrize("executor", ["reference", "cpu"])
def test_vectors(tmp_path: Path, executor: str) -> None:
    from safetensors.numpy import save_file

    weights = make_weights()
    save(wordpiece(), tmp_path, tokenizer_class="BertTokenizer")
    config = {
        "architectures": ["JinaBertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": 1500,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 256,
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "emb_pooler": "mean",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors")
    path = convert(tmp_path, tmp_path / "m.gguf", "f32")
    rng = np.random.default_rng(5)
    texts = [rng.integers(5, 1500, length) for length in LENGTHS]
    wanted = np.stack([run(weights, ids).mean(axis=0) for ids in texts])
    with load_model(path, executor=executor, precision="f32", output="pooled") as model:
        found = embed(model, texts, normalize=False)
    assert np.abs(found - wanted).max() < 1e-4 * np.ptp(wanted)
