"""What a model's metadata says about its computation, checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lltool.engine.program import Activation, Weight
from lltool.engine.rotary import Rotary, Scaling
from lltool.gguf.errors import InputError
from lltool.gguf.header import MAX_TENSORS
from lltool.gguf.metadata import Value, ValueType


@dataclass(frozen=True)
class Architecture:
    """What the files of an architecture leave unsaid."""

    interleaved_rope: bool = False
    head_norms: bool = False
    activation: Activation = "silu"
    scaled_embedding: bool = False
    sliding_period: int = 0  # every n-th layer sees all; 0: a sliding window is for all layers
    local_rope_base: float | None = None  # layers with a sliding window have a rotary of their own, unscaled


ARCHITECTURES = {
    "llama": Architecture(interleaved_rope=True),  # also Mistral, Yi, SmolLM
    "qwen2": Architecture(),
    "qwen3": Architecture(head_norms=True),
    "gemma3": Architecture(
        head_norms=True, activation="gelu_tanh", scaled_embedding=True, sliding_period=6, local_rope_base=10000.0
    ),
}

# Keys that change nothing at these values (at any, where None), so that a file may carry them.
NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "vocab_size": None,
    "tensor_data_layout": None,
    "pooling_type": None,
    "rope.scaling.finetuned": None,
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "nextn_predict_layers": (0,),
    "use_parallel_residual": (False,),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.yarn_attn_factor": (-1, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one model, with what its architecture implies filled in."""

    architecture: str
    traits: Architecture
    vocab: int
    context_length: int
    layers: int
    width: int
    ff_width: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rotary: Rotary
    local_rotary: Rotary  # of layers with a sliding window
    windows: tuple[int, ...]  # a layer; 0: sees all
    attention_scale: float
    attention_softcap: float  # 0: none
    logit_softcap: float
    embedding_scale: float

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Value], weights: Mapping[str, Weight]) -> "ModelConfig":
        """Raises InputError for a missing, absurd or unknown value."""
        found = metadata.get("general.architecture")
        architecture = found.data if found else None
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InputError(f"general.architecture: found {architecture!r}, this version runs {known}")
        if "token_embd.weight" not in weights:
            raise InputError("token_embd.weight: tensor missing; is this file a language model, and whole?")
        traits = ARCHITECTURES[architecture]
        keys = _Keys(metadata, architecture)

        layers = keys.integer("block_count")
        keys.expect("block_count", layers <= MAX_TENSORS, f"at most {MAX_TENSORS}")
        width = keys.integer("embedding_length")
        heads = keys.integer("attention.head_count")
        head_dim = keys.integer("attention.key_length", width // heads)
        kv_heads = keys.integer("attention.head_count_kv", heads)
        keys.expect("attention.head_count", heads % kv_heads == 0, f"a multiple of the {kv_heads} key/value heads")
        value_dim = keys.integer("attention.value_length", head_dim)
        keys.expect("attention.value_length", value_dim == head_dim, f"{head_dim}, as attention.key_length")

        context_length = keys.integer("context_length")
        rotary = _rotary(keys, head_dim, context_length)
        local_rotary = rotary
        if traits.local_rope_base is not None:
            local_rotary = Rotary(_rope_base(keys, "rope.freq_base_swa", traits.local_rope_base), rotary.dims)
        # Gemma 3 27B, alone in its family, scales by the width a head and not by the head's own.
        scaled_dim = width / heads if (architecture, layers) == ("gemma3", 62) else head_dim
        config = cls(
            architecture=architecture,
            traits=traits,
            vocab=weights["token_embd.weight"].rows,
            context_length=context_length,
            layers=layers,
            width=width,
            ff_width=keys.integer("feed_forward_length"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            rotary=rotary,
            local_rotary=local_rotary,
            windows=_windows(keys, layers, traits.sliding_period),
            attention_scale=keys.number("attention.scale", 1 / math.sqrt(scaled_dim)),
            attention_softcap=keys.number("attn_logit_softcapping", 0.0),
            logit_softcap=keys.number("final_logit_softcapping", 0.0),
            embedding_scale=math.sqrt(width) if traits.scaled_embedding else 1.0,
        )
        keys.refuse_unread()
        return config


def _rotary(keys: "_Keys", head_dim: int, context_length: int) -> Rotary:
    dims = keys.integer("rope.dimension_count", head_dim)
    keys.expect("rope.dimension_count", dims % 2 == 0 and dims <= head_dim, f"even and at most {head_dim}")
    base = _rope_base(keys, "rope.freq_base", 10000.0)
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0)) or 1.0
    scaling = _scaling(keys.text("rope.scaling.type", "linear"), factor)
    betas = [keys.number(f"rope.scaling.yarn_beta_{end}", default) for end, default in (("fast", 32.0), ("slow", 1.0))]
    keys.expect("rope.scaling.yarn_beta_slow", 0 < betas[1] <= betas[0], f"above 0 and at most beta_fast, {betas[0]}")
    return Rotary(
        base=base,
        dims=dims,
        scaling=scaling,
        factor=factor,
        original_context=keys.integer("rope.scaling.original_context_length", context_length),
        attention_factor=keys.number("rope.scaling.attn_factor", 1.0),
        beta_fast=betas[0],
        beta_slow=betas[1],
    )


def _rope_base(keys: "_Keys", key: str, default: float) -> float:
    base = keys.number(key, default)
    keys.expect(key, base > 1, "above 1")
    return base


def _scaling(found: str, factor: float) -> Scaling:
    match found:
        case "none":
            return "none"
        case "linear":
            return "linear" if factor != 1 else "none"
        case "yarn":
            return "yarn"
    raise InputError(f"rope.scaling.type: found {found!r}, this version runs none, linear, yarn")


def _windows(keys: "_Keys", layers: int, period: int) -> tuple[int, ...]:
    """The window of each layer: a pattern is a flag a layer (true: slides), or a period whose last layer sees all."""
    window = keys.integer("attention.sliding_window", 0, minimum=0)
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray | list | tuple):
        keys.expect("attention.sliding_window_pattern", len(pattern) == layers, f"one flag for each of {layers} layers")
        slides = [bool(flag) for flag in pattern]
    else:
        period = keys.integer("attention.sliding_window_pattern", period, minimum=0)
        slides = [period == 0 or layer % period < period - 1 for layer in range(layers)]
    return tuple(window if flag else 0 for flag in slides)


class _Keys:
    """The `<architecture>.` keys of a file, read by name and checked off, so that what nobody asked for is noticed."""

    def __init__(self, metadata: Mapping[str, Value], architecture: str) -> None:
        self.prefix = f"{architecture}."
        self.values = {k.removeprefix(self.prefix): v for k, v in metadata.items() if k.startswith(self.prefix)}
        self.read: set[str] = set()

    def raw(self, key: str) -> Any:
        """The value's data or None; a list of equal numbers, one a layer, counts as that number."""
        self.read.add(key)
        value = self.values.get(key)
        if value is None:
            return None
        if value.type == ValueType.ARRAY and value.item != ValueType.STRING and value.item != ValueType.BOOL:
            numbers = set(np.asarray(value.data).tolist())
            self.expect(key, len(numbers) == 1, "one value for all layers")
            return numbers.pop()
        return value.data

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        found = self._get(key, default)
        whole = isinstance(found, int) and not isinstance(found, bool)
        self.expect(key, whole and minimum <= found < 2**31, f"an integer from {minimum}")
        return int(found)

    def number(self, key: str, default: float | None = None) -> float:
        found = self._get(key, default)
        plain = isinstance(found, int | float) and not isinstance(found, bool)
        self.expect(key, plain and math.isfinite(found) and found >= 0, "a number, not negative")
        return float(found)

    def text(self, key: str, default: str) -> str:
        found = self._get(key, default)
        self.expect(key, isinstance(found, str), "a string")
        return str(found)

    def expect(self, key: str, fine: bool, wanted: str) -> None:
        if not fine:
            raise InputError(f"{self.prefix}{key}: found {self._show(key)}, wanted {wanted}")

    def refuse_unread(self) -> None:
        """What a key means that we do not know, nobody can tell: running without it would be a guess."""
        for key in sorted(self.values.keys() - self.read):
            found = self.values[key].data
            if key not in NEUTRAL:
                raise InputError(f"{self.prefix}{key}: found {self._show(key)}, this version does not know the key")
            allowed = NEUTRAL[key]
            if allowed is not None and (isinstance(found, np.ndarray) or found not in allowed):
                wanted = f"this version runs models with {allowed[-1]} only"
                raise InputError(f"{self.prefix}{key}: found {self._show(key)}, {wanted}")

    def _get(self, key: str, default: Any) -> Any:
        found = self.raw(key)
        self.expect(key, found is not None or default is not None, "a value")
        return default if found is None else found

    def _show(self, key: str) -> str:
        """The value in a line of an error message."""
        if key not in self.values:
            return "nothing"
        data = self.values[key].data
        return repr(data.tolist() if isinstance(data, np.ndarray) else data)[:60]
