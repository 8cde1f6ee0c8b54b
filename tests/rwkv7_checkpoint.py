"""Small random checkpoints of RWKV 7, which transformers does not have, and their logits by its published formulas.

Names and shapes are those of the library flash-linear-attention; the computation, token by token in float64, is written
after "RWKV-7 Goose" (Peng et al. 2025, appendix) and the demonstration that its authors publish (rwkv_v7_numpy.py).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CONFIG: dict[str, Any] = {
    "architectures": ["RWKV7ForCausalLM"],
    "model_type": "rwkv7",
    "vocab_size": 384,
    "hidden_size": 48,
    "head_dim": 16,
    "intermediate_size": 160,
    "hidden_ratio": 4.0,
    "num_hidden_layers": 3,
    "decay_low_rank_dim": 12,
    "a_low_rank_dim": 10,
    "v_low_rank_dim": 6,
    "gate_low_rank_dim": 14,
    "hidden_act": "sqrelu",
    "norm_eps": 4e-5,
    "norm_bias": True,
    "norm_first": True,
    "attn": None,
    "attn_mode": "chunk",
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def make_rwkv7(folder: Path, **overrides: Any) -> Path:
    """Writes a checkpoint, of three layers and three heads, and returns its folder."""
    from safetensors.numpy import save_file

    config = CONFIG | overrides
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def normal(*shape: int, spread: float | None = None, mean: float = 0.0) -> NDArray[np.float32]:
        found = rng.standard_normal(shape) * (1.3 / shape[-1] ** 0.5 if spread is None else spread) + mean
        return found.astype(np.float32)

    width, hidden, heads = (
        config["hidden_size"],
        config["intermediate_size"],
        config["hidden_size"] // config["head_dim"],
    )
    vocab = config["vocab_size"]
    tensors = {"model.embeddings.weight": normal(vocab, width), "lm_head.weight": normal(vocab, width)}
    norms = ["model.norm", "model.layers.0.pre_norm"]
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        norms += [f"{layer}attn_norm", f"{layer}ffn_norm", f"{layer}attn.g_norm"]
        ranks = {letter: config[f"{kind}_low_rank_dim"] for letter, kind in (("w", "decay"), ("a", "a"), ("g", "gate"))}
        if number > 0:
            ranks["v"] = config["v_low_rank_dim"]
        for letter, rank in ranks.items():
            module = f"{layer}attn.{letter}_lora.lora."
            tensors[f"{module}0.weight"], tensors[f"{module}2.weight"] = normal(rank, width), normal(width, rank)
            if letter != "g":
                tensors[f"{module}2.bias"] = normal(width, spread=1.0, mean=-2.0 if letter == "w" else 0.0)
        for letter in "rwkvag":
            tensors[f"{layer}attn.x_{letter}"] = rng.random((1, 1, width), np.float32)
        for letter in "rkvo":
            tensors[f"{layer}attn.{letter}_proj.weight"] = normal(width, width)
        for name in ("k_k", "k_a"):
            tensors[f"{layer}attn.{name}"] = normal(width, spread=0.3, mean=0.8)
        tensors[f"{layer}attn.r_k"] = normal(heads, config["head_dim"], spread=0.3)
        tensors[f"{layer}ffn.x_k"] = rng.random(width, np.float32)
        tensors[f"{layer}ffn.key.weight"], tensors[f"{layer}ffn.value.weight"] = (
            normal(hidden, width),
            normal(width, hidden),
        )
    for name in norms:
        tensors[f"{name}.weight"] = normal(width, spread=0.2, mean=1.0)
        tensors[f"{name}.bias"] = normal(width, spread=0.2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokens = [bytes([byte]) for byte in range(256)] + [bytes([97 + n // 26, 97 + n % 26]) for n in range(vocab - 257)]
    lines = [f"{id} {token!r} {len(token)}\n" for id, token in enumerate(tokens, 1)]
    (folder / "rwkv_vocab_v20230424.txt").write_text("".join(lines))
    return folder


def rwkv7_logits(folder: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The logits (T, V) of a text."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    weights = {name: x.astype(np.float64) for name, x in load_file(folder / "model.safetensors").items()}
    x, first = (
        _norm(weights["model.embeddings.weight"][ids], weights, "model.layers.0.pre_norm", config["norm_eps"]),
        None,
    )
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        mixed, first = _mix_time(
            _norm(x, weights, f"{layer}attn_norm", config["norm_eps"]), weights, layer, first, config
        )
        x = x + mixed
        h = _norm(x, weights, f"{layer}ffn_norm", config["norm_eps"])
        shifted = h + (_before(h) - h) * weights[f"{layer}ffn.x_k"]
        x = (
            x
            + np.maximum(shifted @ weights[f"{layer}ffn.key.weight"].T, 0) ** 2 @ weights[f"{layer}ffn.value.weight"].T
        )
    x = _norm(x, weights, "model.norm", config["norm_eps"])
    return (x @ weights["lm_head.weight"].T).astype(np.float32)


def _mix_time(
    x: Array, weights: dict[str, Array], layer: str, first: Array | None, config: dict[str, Any]
) -> tuple[Array, Array]:
    name, dim = f"{layer}attn.", config["head_dim"]
    inputs = {letter: x + (_before(x) - x) * weights[f"{name}x_{letter}"].reshape(-1) for letter in "rwkvag"}

    def narrow(letter: str, function: Any = lambda h: h) -> Array:
        h = function(inputs[letter] @ weights[f"{name}{letter}_lora.lora.0.weight"].T)
        made: Array = h @ weights[f"{name}{letter}_lora.lora.2.weight"].T
        return made + weights.get(f"{name}{letter}_lora.lora.2.bias", np.zeros(1))

    r, k, v = (inputs[letter] @ weights[f"{name}{letter}_proj.weight"].T for letter in "rkv")
    decay = np.exp(-np.exp(-0.5) * _sigmoid(narrow("w", np.tanh)))
    rate, gate = _sigmoid(narrow("a")), narrow("g", _sigmoid)
    if first is None:
        first = v
    else:
        v = v + (first - v) * _sigmoid(narrow("v"))
    removed = (k * weights[f"{name}k_k"]).reshape(len(x), -1, dim)
    removed /= np.maximum(np.linalg.norm(removed, axis=-1, keepdims=True), 1e-12)
    k = k * (1 + (rate - 1) * weights[f"{name}k_a"])
    r, k, v, decay, rate = (part.reshape(len(x), -1, dim) for part in (r, k, v, decay, rate))
    state = np.zeros((r.shape[1], dim, dim))  # (heads, values, keys)
    out = np.empty_like(v)
    for t in range(len(x)):
        lost = state @ removed[t][..., None] @ (removed[t] * rate[t])[:, None, :]
        state = state * decay[t][:, None, :] - lost + v[t][..., None] * k[t][:, None, :]
        out[t] = (state @ r[t][..., None])[..., 0]
    out = out - out.mean(axis=-1, keepdims=True)
    out = (out / np.sqrt((out * out).mean(axis=-1, keepdims=True) + 64e-5)).reshape(x.shape)
    out = out * weights[f"{name}g_norm.weight"] + weights[f"{name}g_norm.bias"]
    bonus = (r * k * weights[f"{name}r_k"]).sum(axis=-1, keepdims=True) * v
    return (out + bonus.reshape(x.shape)) * gate @ weights[f"{name}o_proj.weight"].T, first


def _norm(x: Array, weights: dict[str, Array], name: str, eps: float) -> Array:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _before(x: Array) -> Array:
    """The row before each; zeros before the first."""
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def _sigmoid(x: Array) -> Array:
    out: Array = 1 / (1 + np.exp(-x))
    return out
