"""The configuration of a model, read from its metadata and checked."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from lltool.engine.models.distances import read_slopes, read_windows
from lltool.engine.models.mixture import Mixture, MixtureTraits, read_mixture
from lltool.engine.models.pooling import Pooling, PoolingSettings, read_pooling
from lltool.engine.models.rotary import Rotary, Scaling
from lltool.engine.operations.elementwise import Activation, PlainActivation
from lltool.engine.program import Weight
from lltool.gguf.architecture_keys import SCALES, ArchitectureKeys, show
from lltool.gguf.errors import InputError
from lltool.gguf.header import MAX_TENSORS
from lltool.gguf.metadata import Value

ASSUMED_CONTEXT = 4096
"""The context length, in tokens, of a file that does not state one."""

Scaled = Literal["embedding_scale", "residual_scale", "logit_scale"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """Properties of an architecture that its files do not state."""

    # The layers with rotary positions: those with a sliding window, or if there is none, none or all.
    rotates: Literal["all", "windows", "windows or all", "none"] = "all"
    unrotated_period: int = 0  # every n-th layer has no rotary positions
    interleaved_rope: bool = False
    head_norms: bool = False
    norm: Literal["rms", "layer"] = "rms"
    activation: Activation | PlainActivation | Literal["xielu"] = "silu"
    is_gated: bool = True
    parallel: Literal["", "stated", "without ffn_norm"] = (
        ""  # when attention and MLP read the same x; stated: if not else
    )
    norms_after_rope: bool = False  # of heads
    sinks: bool = False  # an attention logit without a value for each head
    mixture: MixtureTraits | None = None  # None: its models have no experts
    extra_blocks: bool = False  # after the last, files may have blocks that predict further tokens, which do not run
    scaled_embedding: bool = False
    scales: frozenset[Scaled] = frozenset()  # which keys about scales it reads
    divides_logits: bool = False  # by their scale
    sliding_period: int = 0  # every n-th layer has full attention; 0: a sliding window applies to all layers
    full_layers_first: bool = False  # the first of such a period has full attention, not the last
    exact_yarn: bool = False  # YaRN's range of blended pairs is not rounded
    local_rope_base: float | None = None  # for layers with a sliding window; not scaled
    plain_local_rope: bool = False  # layers with a sliding window have the same base if none is stated; not scaled
    alibi_bias: float = 0.0  # the largest slope's exponent, of attention that is biased by distance; 0: none
    clamps: bool = False  # it reads the limit of queries, keys and values
    scales_by_width: bool = False  # scores, by width / heads and not by the head's own dimension
    halved_mlp: bool = False  # the file states twice the width inside the MLP
    ffn_norm: str = "ffn_norm"  # the name of the norm before the MLP
    causal: bool = True  # whether a token sees only those before it, unless the file says so
    rank_pooling: Pooling = "last"  # of rerankers
    classifier_activation: PlainActivation = "tanh"
    bare_first_layer: bool = False  # its attention has no norm before it
    by_layers: Mapping[int, "Architecture"] = field(default_factory=dict)  # models known only by their number of layers


_GRANITE: frozenset[Scaled] = frozenset({"embedding_scale", "residual_scale", "logit_scale"})

_GEMMA2 = Architecture(activation="gelu_tanh", scaled_embedding=True, sliding_period=2)
_GEMMA3 = Architecture(
    head_norms=True, activation="gelu_tanh", scaled_embedding=True, sliding_period=6, local_rope_base=10000.0
)
_BERT = Architecture(norm="layer", activation="gelu", causal=False, rank_pooling="cls")

ARCHITECTURES = {
    # Llama 1 to 3, Mistral, Mixtral, Yi, SmolLM, InternLM 3
    "llama": Architecture(interleaved_rope=True, mixture=MixtureTraits(normalized=True)),
    "qwen2": Architecture(),
    "qwen2moe": Architecture(mixture=MixtureTraits()),
    "qwen3": Architecture(head_norms=True),
    "qwen3moe": Architecture(head_norms=True, mixture=MixtureTraits(normalized=True)),
    "olmoe": Architecture(head_norms=True, mixture=MixtureTraits()),
    "granitemoe": Architecture(
        interleaved_rope=True, scales=_GRANITE, divides_logits=True, mixture=MixtureTraits(normalized=True)
    ),
    "glm4moe": Architecture(
        head_norms=True,
        ffn_norm="post_attention_norm",
        mixture=MixtureTraits(scoring="sigmoid"),
        extra_blocks=True,
    ),
    "ernie4_5-moe": Architecture(interleaved_rope=True, mixture=MixtureTraits(normalized=True)),
    "dots1": Architecture(head_norms=True, mixture=MixtureTraits(scoring="sigmoid")),
    "gpt-oss": Architecture(
        ffn_norm="post_attention_norm",
        activation="swiglu_oai",
        sinks=True,
        sliding_period=2,
        exact_yarn=True,
        mixture=MixtureTraits(normalized=True),
    ),
    "gemma": Architecture(activation="gelu_tanh", scaled_embedding=True),
    "gemma2": replace(_GEMMA2, by_layers={46: replace(_GEMMA2, scales_by_width=True)}),  # 27B
    "gemma3": replace(_GEMMA3, by_layers={62: replace(_GEMMA3, scales_by_width=True)}),  # 27B
    "internlm2": Architecture(interleaved_rope=True),
    "baichuan": Architecture(interleaved_rope=True, by_layers={40: Architecture(rotates="none", alibi_bias=8.0)}),
    "minicpm": Architecture(interleaved_rope=True, scales=_GRANITE, divides_logits=True),
    "granite": Architecture(interleaved_rope=True, scales=_GRANITE, divides_logits=True),
    "phi3": Architecture(),
    "smollm3": Architecture(interleaved_rope=True, unrotated_period=4),
    "stablelm": Architecture(norm="layer", parallel="without ffn_norm", head_norms=True),
    "olmo": Architecture(interleaved_rope=True, norm="layer", clamps=True),
    "olmo2": Architecture(head_norms=True, plain_local_rope=True),  # also OLMo 3
    "qwen": Architecture(halved_mlp=True),
    "chatglm": Architecture(interleaved_rope=True),
    "glm4": Architecture(interleaved_rope=True),
    "command-r": Architecture(
        interleaved_rope=True, norm="layer", parallel="stated", head_norms=True, scales=frozenset({"logit_scale"})
    ),
    "cohere2": Architecture(
        rotates="windows",
        interleaved_rope=True,
        norm="layer",
        parallel="stated",
        scales=frozenset({"logit_scale"}),
        sliding_period=4,
    ),
    "starcoder2": Architecture(norm="layer", activation="gelu_tanh", is_gated=False),
    "phi2": Architecture(norm="layer", activation="gelu_tanh", is_gated=False, parallel="stated"),
    "gptneox": Architecture(norm="layer", activation="gelu", is_gated=False, parallel="stated"),
    "gptj": Architecture(
        interleaved_rope=True, norm="layer", activation="gelu_tanh", is_gated=False, parallel="stated"
    ),
    "gpt2": Architecture(rotates="none", norm="layer", activation="gelu_tanh", is_gated=False),
    "starcoder": Architecture(rotates="none", norm="layer", activation="gelu_tanh", is_gated=False),
    "falcon": Architecture(norm="layer", activation="gelu", is_gated=False, parallel="stated"),
    "mpt": Architecture(rotates="none", norm="layer", activation="gelu", is_gated=False, clamps=True),
    "bloom": Architecture(rotates="none", norm="layer", activation="gelu_tanh", is_gated=False, alibi_bias=8.0),
    "nemotron": Architecture(norm="layer", activation="relu_squared", is_gated=False),
    "exaone4": Architecture(rotates="windows or all", head_norms=True, sliding_period=4),
    "seed_oss": Architecture(ffn_norm="post_attention_norm"),
    "apertus": Architecture(head_norms=True, activation="xielu", is_gated=False),
    "ernie4_5": Architecture(interleaved_rope=True),
    "hunyuan-dense": Architecture(head_norms=True, norms_after_rope=True),
    # BERT, MiniLM, BGE, GTE, E5; with its positions cut RoBERTa and XLM-RoBERTa
    "bert": replace(_BERT, rotates="none", is_gated=False),
    "nomic-bert": replace(_BERT, activation="silu"),
    "jina-bert-v2": replace(_BERT, rotates="none", alibi_bias=8.0, head_norms=True),
    "jina-bert-v3": replace(_BERT, is_gated=False),
    "modern-bert": replace(
        _BERT,
        rank_pooling="mean",
        classifier_activation="gelu",
        bare_first_layer=True,
        sliding_period=3,
        full_layers_first=True,
        plain_local_rope=True,
    ),
    "eurobert": Architecture(causal=False),
    "gemma-embedding": replace(_GEMMA3, causal=False),
}

# Keys that have no effect at these values (None: at any value), so that a file may have them.
NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "vocab_size": None,
    "tensor_data_layout": None,
    "classifier.output_labels": None,
    "dense_2_feat_in": None,
    "dense_2_feat_out": None,
    "dense_3_feat_in": None,
    "dense_3_feat_out": None,
    "rope.scaling.finetuned": None,
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "nextn_predict_layers": (0,),
    "use_parallel_residual": (False,),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.yarn_attn_factor": (-1, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.dimension_count": None,
    "rope.freq_base": None,
    "attention.layer_norm_epsilon": None,  # an architecture needs one of the two, and some files state both
    "attention.layer_norm_rms_epsilon": None,
    "rope.scaling.type": ("none",),
}


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and constants of one model, including those that its architecture implies."""

    architecture: str
    traits: Architecture
    vocab: int
    context_length: int
    layers: int
    width: int
    ff_width: int
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys
    value_dim: int
    norm_eps: float
    rotary: Rotary
    local_rotary: Rotary  # of layers with a sliding window
    windows: tuple[int, ...]  # of each layer; 0: full attention
    attention_scale: float
    attention_softcap: float  # 0: none
    logit_softcap: float
    embedding_scale: float
    residual_scale: float  # of what a block adds
    logit_scale: float
    is_parallel: bool
    rotated: tuple[bool, ...]  # of each layer: whether it has rotary positions
    slopes: tuple[float, ...] | None  # of each head, for attention that is biased by distance
    clamp: float  # the limit of queries, keys and values; 0: none
    xielu: tuple[tuple[float, float, float], ...]  # of each layer, if it is the activation: positive, negative, slope
    context: int  # the most tokens of a sequence, as the model is loaded
    mixture: Mixture | None  # None: no experts
    is_causal: bool  # whether a token sees only those before it; else a text is evaluated whole
    pooling: PoolingSettings

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Value], weights: Mapping[str, Weight]) -> "ModelConfig":
        """Raises InputError if a value is missing, absurd or unknown."""
        stated = metadata.get("general.architecture")
        architecture = stated.data if stated else None
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            found = show(stated) if stated else "nothing"
            raise InputError(f"general.architecture: found {found}, this version runs {', '.join(ARCHITECTURES)}")
        if "token_embd.weight" not in weights:
            raise InputError("token_embd.weight: tensor missing; is this file a complete language model?")
        traits = ARCHITECTURES[architecture]
        keys = ArchitectureKeys(metadata, architecture)

        layers = keys.integer("block_count")
        keys.expect("block_count", layers <= MAX_TENSORS, f"at most {MAX_TENSORS}")
        if traits.extra_blocks:
            extra = keys.integer("nextn_predict_layers", 0, minimum=0)
            keys.expect("nextn_predict_layers", extra < layers, f"fewer than the {layers} blocks")
            layers -= extra
        traits = traits.by_layers.get(layers, traits)
        if "hidden_activation" in keys.values:
            traits = replace(traits, activation=_stated_activation(keys))
        width = keys.integer("embedding_length")
        heads = keys.integer("attention.head_count")
        head_dim = keys.integer("attention.key_length", width // heads)
        kv_heads = keys.integer("attention.head_count_kv", heads)
        keys.expect("attention.head_count", heads % kv_heads == 0, f"a multiple of the {kv_heads} key/value heads")
        value_dim = keys.integer("attention.value_length", head_dim)

        context_length = keys.integer("context_length", ASSUMED_CONTEXT)
        if "context_length" not in keys.values:
            _log.warning("%scontext_length is missing: a context of %d tokens is assumed", keys.prefix, context_length)
        rotary = (
            Rotary(10000.0, head_dim) if traits.rotates == "none" else _rotary(keys, head_dim, context_length, weights)
        )
        rotary = replace(rotary, exact=traits.exact_yarn)
        local_rotary = rotary
        if traits.plain_local_rope:
            local_rotary = Rotary(_rope_base(keys, "rope.freq_base_swa", rotary.base), rotary.dims)
        if traits.local_rope_base is not None:
            local_rotary = Rotary(_rope_base(keys, "rope.freq_base_swa", traits.local_rope_base), rotary.dims)
        scaled_dim = width / heads if traits.scales_by_width else head_dim
        windows = read_windows(keys, layers, traits.sliding_period, full_first=traits.full_layers_first)
        eps = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}[traits.norm]
        scales = {key: keys.number(key, 0.0, *SCALES) or 1.0 for key in sorted(traits.scales)}
        logit_scale = scales.get("logit_scale", 1.0)
        ff_width = keys.integer("feed_forward_length") // (2 if traits.halved_mlp else 1)
        config = cls(
            architecture=architecture,
            traits=traits,
            vocab=weights["token_embd.weight"].rows,
            context_length=context_length,
            layers=layers,
            width=width,
            ff_width=ff_width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            norm_eps=keys.number(eps, high=1.0),
            rotary=rotary,
            local_rotary=local_rotary,
            windows=windows,
            attention_scale=keys.number("attention.scale", 1 / math.sqrt(scaled_dim), *SCALES),
            attention_softcap=keys.number("attn_logit_softcapping", 0.0, *SCALES),
            logit_softcap=keys.number("final_logit_softcapping", 0.0, *SCALES),
            embedding_scale=math.sqrt(width) if traits.scaled_embedding else scales.get("embedding_scale", 1.0),
            residual_scale=scales.get("residual_scale", 1.0),
            logit_scale=1 / logit_scale if traits.divides_logits else logit_scale,
            mixture=read_mixture(keys, traits.mixture, ff_width),
            is_parallel=_is_parallel(keys, traits, weights),
            rotated=_rotated(traits, windows),
            slopes=read_slopes(keys, heads, traits.alibi_bias),
            context=context_length,
            xielu=_xielu(metadata, layers) if traits.activation == "xielu" else (),
            clamp=keys.number("attention.clamp_kqv", 0.0, *SCALES) if traits.clamps else 0.0,
            is_causal=keys.flag("attention.causal", traits.causal),
            pooling=read_pooling(keys, traits.rank_pooling, has_classifier="cls.output.weight" in weights),
        )
        keys.refuse_unread(NEUTRAL)
        return config


def _xielu(metadata: Mapping[str, Value], layers: int) -> tuple[tuple[float, float, float], ...]:
    """The scales and slopes of each layer; a file has the numbers that a softplus makes positive."""
    keys = ArchitectureKeys(metadata, "xielu")
    alpha_p, alpha_n, beta, eps = (keys.numbers(key, layers) for key in ("alpha_p", "alpha_n", "beta", "eps"))
    keys.expect("eps", all(abs(x + 1e-6) < 1e-7 for x in eps), "-1e-06 for each layer")
    softplus = np.logaddexp(0, np.array([alpha_p, alpha_n]))
    return tuple((float(p), b + float(n), b) for p, n, b in zip(*softplus, beta, strict=True))


def _stated_activation(keys: ArchitectureKeys) -> Activation:
    found = keys.text("hidden_activation", "")
    keys.expect("hidden_activation", found in ("gelu", "silu"), "gelu or silu")
    return "silu" if found == "silu" else "gelu"


def _is_parallel(keys: ArchitectureKeys, traits: Architecture, weights: Mapping[str, Weight]) -> bool:
    if not traits.parallel:
        return False
    stated = keys.flag("use_parallel_residual", True)
    return stated if traits.parallel == "stated" else "blk.0.ffn_norm.weight" not in weights


def _rotated(traits: Architecture, windows: Sequence[int]) -> tuple[bool, ...]:
    match traits.rotates:
        case "none":
            return (False,) * len(windows)
        case "windows":
            return tuple(window > 0 for window in windows)
        case "windows or all" if any(windows):
            return tuple(window > 0 for window in windows)
    period = traits.unrotated_period
    return tuple(not period or (layer + 1) % period != 0 for layer in range(len(windows)))


def _rotary(keys: ArchitectureKeys, head_dim: int, context_length: int, weights: Mapping[str, Weight]) -> Rotary:
    dims = keys.integer("rope.dimension_count", head_dim)
    keys.expect("rope.dimension_count", dims % 2 == 0 and dims <= head_dim, f"even and at most {head_dim}")
    base = _rope_base(keys, "rope.freq_base", 10000.0)
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0, *SCALES), *SCALES) or 1.0
    type = keys.text("rope.scaling.type", "linear")
    # LongRoPE's factors are tensors, which take the place of a scaling.
    scaling = _scaling("none" if type == "longrope" and "rope_factors_long.weight" in weights else type, factor)
    defaults = (("fast", 32.0), ("slow", 1.0))
    betas = [keys.number(f"rope.scaling.yarn_beta_{end}", default, *SCALES) for end, default in defaults]
    keys.expect("rope.scaling.yarn_beta_slow", betas[1] <= betas[0], f"at most beta_fast, {betas[0]}")
    return Rotary(
        base=base,
        dims=dims,
        scaling=scaling,
        factor=factor,
        original_context=keys.integer("rope.scaling.original_context_length", context_length),
        attention_factor=keys.number("rope.scaling.attn_factor", 1.0, *SCALES),
        beta_fast=betas[0],
        beta_slow=betas[1],
    )


def _rope_base(keys: ArchitectureKeys, key: str, default: float) -> float:
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
