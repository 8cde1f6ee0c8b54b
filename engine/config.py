"""The configuration of a model, read from its metadata and checked."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from lltool.engine.models.alibi import read_slopes
from lltool.engine.models.delta_net import DeltaNet, HeadOrder, read_delta_net
from lltool.engine.models.latent import Latent, read_latent
from lltool.engine.models.mixture import Mixture, MixtureTraits, read_mixture
from lltool.engine.models.neutral_keys import NEUTRAL
from lltool.engine.models.recurrent import Attends, Mixer, Recurrent, read_heads, read_recurrent
from lltool.engine.models.rotary import Rotary, Scaling
from lltool.engine.models.temper import Temper, Tempered, read_temper
from lltool.engine.models.windows import read_windows
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
    # "stated" is the key rope.scaling.finetuned, which Granite has as a switch.
    rotates: Literal["all", "windows", "windows or all", "none", "stated"] = "all"
    unrotated_period: int = 0  # every n-th layer has no rotary positions
    interleaved_rope: bool = False
    head_norms: Literal["none", "always", "if stored"] = "none"  # of queries and keys
    norm: Literal["rms", "layer"] = "rms"
    activation: Activation | PlainActivation | Literal["xielu"] = "silu"
    is_gated: bool = True
    # When attention and MLP read the same x; stated: if not else.
    parallel: Literal["", "stated", "without ffn_norm"] = ""
    norms_after_rope: bool = False  # of heads
    gates_attention: bool = False  # the sigmoid of a gate for each query multiplies the output
    delta_net: HeadOrder | None = None  # None: no layer has one
    plain_head_norms: bool = False  # norms without weights, of heads with rotary positions
    is_chunked: bool = False  # a sliding window is a chunk: a query sees the keys of its own chunk alone
    window: int = 0  # of files that do not state one; 0: none
    tempered: Tempered = ""  # the layers whose queries grow with the position
    divides_magnitude: bool = False  # it reads a multiplier that takes back YaRN's magnitude
    sinks: bool = False  # an attention logit without a value for each head
    latent: bool = False  # attention whose keys and values are a vector that all heads share
    mixture: MixtureTraits | None = None  # None: its models have no experts
    extra_blocks: bool = False  # after the last, files may have blocks that predict further tokens, which do not run
    scaled_embedding: bool = False
    scales: frozenset[Scaled] = frozenset()  # which keys about scales it reads
    divides_logits: bool = False  # by their scale
    sliding_period: int = 0  # every n-th layer has full attention; 0: a sliding window applies to all layers
    exact_yarn: bool = False  # YaRN's range of blended pairs is not rounded
    local_rope_base: float | None = None  # for layers with a sliding window; not scaled
    plain_local_rope: bool = False  # layers with a sliding window have the same base if none is stated; not scaled
    alibi_bias: float = 0.0  # the largest slope's exponent, of attention that is biased by distance; 0: none
    clamps: bool = False  # it reads the limit of queries, keys and values
    scales_by_width: bool = False  # scores, by width / heads and not by the head's own dimension
    halved_mlp: bool = False  # the file states twice the width inside the MLP
    ffn_norm: str = "ffn_norm"  # the name of the norm before the MLP
    output_norm: str = "output_norm"  # the name of the last norm
    mixer: Mixer = "none"  # of tokens, other than attention
    attends: Attends = "all"
    mixer_norm: Literal["always", "if stored"] = "always"  # after the scan of mamba2
    step_norms: bool = False  # of what mamba computes from a token: steps, b and c
    has_mlp: bool = True
    by_layers: Mapping[int, "Architecture"] = field(default_factory=dict)  # models known only by their number of layers


_GRANITE: frozenset[Scaled] = frozenset({"embedding_scale", "residual_scale", "logit_scale"})

_QWEN3_NEXT = Architecture(
    head_norms="always",
    ffn_norm="post_attention_norm",
    mixture=MixtureTraits(normalized=True),
    extra_blocks=True,
    gates_attention=True,
    delta_net="tiled",
)
_GEMMA2 = Architecture(activation="gelu_tanh", scaled_embedding=True, sliding_period=2)
_GEMMA3 = Architecture(
    head_norms="always", activation="gelu_tanh", scaled_embedding=True, sliding_period=6, local_rope_base=10000.0
)

_LFM2 = Architecture(head_norms="always", mixer="short convolution", attends="stated", output_norm="token_embd_norm")

ARCHITECTURES = {
    # Llama 1 to 3, Mistral, Mixtral, Yi, SmolLM, InternLM 3
    "llama": Architecture(interleaved_rope=True, mixture=MixtureTraits(normalized=True)),
    "qwen2": Architecture(),
    "qwen2moe": Architecture(mixture=MixtureTraits()),
    "qwen3": Architecture(head_norms="always"),
    "qwen3moe": Architecture(head_norms="always", mixture=MixtureTraits(normalized=True)),
    "qwen3next": replace(_QWEN3_NEXT, delta_net="grouped"),
    "qwen35": _QWEN3_NEXT,
    "qwen35moe": _QWEN3_NEXT,
    "olmoe": Architecture(head_norms="always", mixture=MixtureTraits()),
    "granitemoe": Architecture(
        interleaved_rope=True, scales=_GRANITE, divides_logits=True, mixture=MixtureTraits(normalized=True)
    ),
    "glm4moe": Architecture(
        head_norms="if stored",
        ffn_norm="post_attention_norm",
        mixture=MixtureTraits(scoring="sigmoid"),
        extra_blocks=True,
    ),
    "ernie4_5-moe": Architecture(interleaved_rope=True, mixture=MixtureTraits(normalized=True)),
    "dots1": Architecture(head_norms="always", mixture=MixtureTraits(scoring="sigmoid")),
    "deepseek2": Architecture(  # DeepSeek V2 and V3, Kimi K2, GLM 4.7 Flash
        interleaved_rope=True,
        latent=True,
        tempered="all",
        mixture=MixtureTraits(best_of_groups=True),
        extra_blocks=True,
    ),
    "phimoe": Architecture(norm="layer", mixture=MixtureTraits(scoring="sparsemixer")),
    "llama4": Architecture(
        rotates="windows or all",
        interleaved_rope=True,
        plain_head_norms=True,
        is_chunked=True,
        window=8192,
        tempered="unrotated",
        sliding_period=4,
        mixture=MixtureTraits(scoring="sigmoid", weighs_inputs=True, has_shared=True),
    ),
    "mistral3": Architecture(interleaved_rope=True, tempered="all", divides_magnitude=True),
    "arcee": Architecture(interleaved_rope=True, activation="relu_squared", is_gated=False),
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
    "stablelm": Architecture(norm="layer", parallel="without ffn_norm", head_norms="if stored"),
    "olmo": Architecture(interleaved_rope=True, norm="layer", clamps=True),
    "olmo2": Architecture(head_norms="always", plain_local_rope=True),  # also OLMo 3
    "qwen": Architecture(halved_mlp=True),
    "chatglm": Architecture(interleaved_rope=True),
    "glm4": Architecture(interleaved_rope=True),
    "command-r": Architecture(
        interleaved_rope=True,
        norm="layer",
        parallel="stated",
        head_norms="if stored",
        scales=frozenset({"logit_scale"}),
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
    "exaone": Architecture(),  # EXAONE 3
    "exaone4": Architecture(rotates="windows or all", head_norms="always", sliding_period=4),
    "seed_oss": Architecture(ffn_norm="post_attention_norm"),
    "apertus": Architecture(head_norms="always", activation="xielu", is_gated=False),
    "ernie4_5": Architecture(interleaved_rope=True),
    "hunyuan-dense": Architecture(head_norms="always", norms_after_rope=True),
    "lfm2": _LFM2,
    "lfm2moe": replace(_LFM2, mixture=MixtureTraits(scoring="sigmoid", normalized=True)),
    "mamba": Architecture(rotates="none", mixer="mamba", attends="none", has_mlp=False),  # also Falcon Mamba
    "mamba2": Architecture(rotates="none", mixer="mamba2", attends="none", has_mlp=False),
    "falcon-h1": Architecture(mixer="mamba2", mixer_norm="if stored"),
    "granitehybrid": Architecture(
        rotates="stated",
        interleaved_rope=True,
        scales=_GRANITE,
        divides_logits=True,
        mixture=MixtureTraits(normalized=True),
        mixer="mamba2",
        attends="stated",
    ),
    "jamba": Architecture(
        rotates="none", mixer="mamba", step_norms=True, attends="stated", mixture=MixtureTraits(by_router=True)
    ),
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
    attends: tuple[bool, ...]  # of each layer: whether it has attention
    recurrent: Recurrent | None  # the mixer beside attention, or of layers without it
    delta_net: DeltaNet | None  # None: no layer has one
    temper: Temper | None  # None: queries do not grow with the position
    latent: Latent | None  # None: each head, or group of heads, has keys and values of its own

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
        width = keys.integer("embedding_length")
        heads, kv_heads, attends = read_heads(keys, layers, traits.attends)
        head_dim = keys.integer("attention.key_length", width // heads)
        keys.expect("attention.head_count", heads % kv_heads == 0, f"a multiple of the {kv_heads} key/value heads")
        value_dim = keys.integer("attention.value_length", head_dim)

        context_length = keys.integer("context_length", ASSUMED_CONTEXT)
        if "context_length" not in keys.values:
            _log.warning("%scontext_length is missing: a context of %d tokens is assumed", keys.prefix, context_length)
        rotary = (
            Rotary(10000.0, head_dim) if traits.rotates == "none" else _rotary(keys, head_dim, context_length, weights)
        )
        rotary = replace(rotary, exact=traits.exact_yarn)
        if traits.divides_magnitude:
            multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0, *SCALES)
            rotary = replace(rotary, log_multiplier=0.1 * multiplier)
        local_rotary = rotary
        if traits.plain_local_rope:
            local_rotary = Rotary(_rope_base(keys, "rope.freq_base_swa", rotary.base), rotary.dims)
        if traits.local_rope_base is not None:
            local_rotary = Rotary(_rope_base(keys, "rope.freq_base_swa", traits.local_rope_base), rotary.dims)
        latent, rotary = read_latent(keys, rotary, head_dim, kv_heads) if traits.latent else (None, rotary)
        scaled_dim = width / heads if traits.scales_by_width else head_dim
        windows = read_windows(keys, layers, traits.sliding_period, traits.window)
        both = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")
        eps = both[1] if traits.norm == "rms" or both[0] not in keys.values else both[0]
        scales = {key: keys.number(key, 0.0, *SCALES) or 1.0 for key in sorted(traits.scales)}
        logit_scale = scales.get("logit_scale", 1.0)
        absent = keys.raw("expert_feed_forward_length") if traits.has_mlp else 0  # files without dense layers lack it
        ff_width = keys.integer("feed_forward_length", absent, minimum=int(traits.has_mlp))
        ff_width //= 2 if traits.halved_mlp else 1
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
            attention_scale=latent.scale if latent else keys.number("attention.scale", scaled_dim**-0.5, *SCALES),
            attention_softcap=keys.number("attn_logit_softcapping", 0.0, *SCALES),
            logit_softcap=keys.number("final_logit_softcapping", 0.0, *SCALES),
            embedding_scale=math.sqrt(width) if traits.scaled_embedding else scales.get("embedding_scale", 1.0),
            residual_scale=scales.get("residual_scale", 1.0),
            logit_scale=1 / logit_scale if traits.divides_logits else logit_scale,
            mixture=read_mixture(keys, traits.mixture, ff_width),
            attends=attends,
            recurrent=read_recurrent(keys, traits.mixer),
            delta_net=read_delta_net(keys, traits.delta_net, layers),
            temper=read_temper(keys, traits.tempered, rotary),
            latent=latent,
            is_parallel=_is_parallel(keys, traits, weights),
            rotated=_rotated(keys, traits, windows),
            slopes=read_slopes(keys, heads, traits.alibi_bias),
            context=context_length,
            xielu=_xielu(metadata, layers) if traits.activation == "xielu" else (),
            clamp=keys.number("attention.clamp_kqv", 0.0, *SCALES) if traits.clamps else 0.0,
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


def _is_parallel(keys: ArchitectureKeys, traits: Architecture, weights: Mapping[str, Weight]) -> bool:
    if not traits.parallel:
        return False
    stated = keys.flag("use_parallel_residual", True)
    return stated if traits.parallel == "stated" else "blk.0.ffn_norm.weight" not in weights


def _rotated(keys: ArchitectureKeys, traits: Architecture, windows: Sequence[int]) -> tuple[bool, ...]:
    match traits.rotates:
        case "none":
            return (False,) * len(windows)
        case "stated":
            return (keys.flag("rope.scaling.finetuned", True),) * len(windows)
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
