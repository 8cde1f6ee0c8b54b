"""The configuration of a model, read from its metadata and checked."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lltool.engine.models.alibi import read_slopes
from lltool.engine.models.delta_net import DeltaNet, read_delta_net, read_kimi_delta
from lltool.engine.models.latent import Latent, read_latent
from lltool.engine.models.layer_sizes import LayerSizes, read_layer_sizes
from lltool.engine.models.mixture import Mixture, read_mixture
from lltool.engine.models.neutral_keys import NEUTRAL
from lltool.engine.models.pooling import PoolingSettings, read_pooling
from lltool.engine.models.recurrent import Recurrent, read_heads, read_recurrent
from lltool.engine.models.rotary import Rotary, Scaling
from lltool.engine.models.streams import Streams, read_streams
from lltool.engine.models.temper import Temper, read_temper
from lltool.engine.models.time_mixing import TimeMixing, read_time_mixing
from lltool.engine.models.windows import read_windows
from lltool.engine.operations.elementwise import Activation
from lltool.engine.program import Weight
from lltool.engine.traits import ARCHITECTURES, Architecture
from lltool.gguf.architecture_keys import SCALES, ArchitectureKeys, show
from lltool.gguf.errors import InputError
from lltool.gguf.header import MAX_TENSORS
from lltool.gguf.metadata import Value

ASSUMED_CONTEXT = 4096
"""The context length, in tokens, of a file that does not state one."""

_log = logging.getLogger(__name__)


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
    mlps: tuple[bool, ...]  # of each layer: whether it has an MLP
    recurrent: Recurrent | None  # the mixer beside attention, or of layers without it
    delta_net: DeltaNet | None  # None: no layer has one
    time_mixing: TimeMixing | None  # None: it has attention or another mixer
    temper: Temper | None  # None: queries do not grow with the position
    latent: Latent | None  # None: each head, or group of heads, has keys and values of its own
    layer_sizes: tuple[LayerSizes, ...]  # empty: all layers have the same
    input_width: int  # of what each layer reads of the tokens; 0: nothing
    streams: Streams | None  # None: one residual stream
    bias_buckets: int  # of a bias of scores by the distance of keys; 0: none
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
            keys.further = extra
        traits = traits.by_layers.get(layers, traits)
        if traits.ungated and f"{traits.prefix}blk.0.ffn_gate.weight" not in weights:
            traits = replace(traits, is_gated=False, activation=traits.ungated)
        if "hidden_activation" in keys.values:
            traits = replace(traits, activation=_stated_activation(keys))
        width = keys.integer("embedding_length")
        windows = read_windows(keys, layers, traits.sliding_period, traits.window, full_first=traits.full_layers_first)
        sizes = read_layer_sizes(keys, layers, width, windows) if traits.sizes_by_layer else ()
        if sizes:
            heads, kv_heads, attends = sizes[-1].heads, sizes[-1].kv_heads, (True,) * layers
        else:
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
        if sizes:
            local_rotary = replace(local_rotary, dims=keys.integer("rope.dimension_count_swa", local_rotary.dims))
        latent: Latent | None = None
        if traits.latent:
            states_values = not traits.kimi_delta
            latent, rotary = read_latent(keys, rotary, head_dim, kv_heads, states_values=states_values)
        scaled_dim = width / heads if traits.scales_by_width else 1 if traits.unscaled else head_dim
        both = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")
        preferred = both[::-1] if traits.norm == "rms" else both
        eps = next((key for key in preferred if key in keys.values), preferred[0])
        scales = {key: keys.number(key, 0.0, *SCALES) or 1.0 for key in sorted(traits.scales)}
        logit_scale = scales.get("logit_scale", 1.0)
        ff_width, mlps = _feed_forward(keys, layers, traits, sizes)
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
            mlps=mlps,
            recurrent=read_recurrent(keys, traits.mixer),
            delta_net=read_kimi_delta(keys, heads, attends)
            if traits.kimi_delta
            else read_delta_net(keys, traits.delta_net, layers),
            time_mixing=read_time_mixing(keys, width) if traits.time_mixing else None,
            temper=read_temper(keys, traits.tempered, rotary),
            latent=latent,
            is_parallel=_is_parallel(keys, traits, weights),
            rotated=_rotated(keys, traits, windows),
            slopes=read_slopes(keys, heads, traits.alibi_bias),
            context=context_length,
            xielu=_xielu(metadata, layers) if traits.activation == "xielu" else (),
            clamp=keys.number("attention.clamp_kqv", 0.0, *SCALES) if traits.clamps else 0.0,
            layer_sizes=sizes,
            input_width=keys.integer("embedding_length_per_layer_input", 0, minimum=0) if sizes else 0,
            streams=read_streams(keys, layers) if traits.has_streams else None,
            bias_buckets=keys.integer("attention.relative_buckets_count", minimum=4) if traits.distance_bias else 0,
            is_causal=keys.flag("attention.causal", traits.causal),
            pooling=read_pooling(keys, traits.rank_pooling, has_classifier="cls.output.weight" in weights),
        )
        keys.refuse_unread(NEUTRAL)
        return config

    def of_layer(self, layer: int) -> "ModelConfig":
        """The configuration with the sizes of one layer."""
        if not self.layer_sizes:
            return self
        sizes = self.layer_sizes[layer]
        return replace(
            self,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            value_dim=sizes.value_dim,
            ff_width=sizes.ff_width,
        )

    def block(self, layer: int) -> str:
        """What the names of a layer's tensors begin with."""
        return f"{self.traits.prefix}blk.{layer}."


def _feed_forward(
    keys: ArchitectureKeys, layers: int, traits: Architecture, sizes: Sequence[LayerSizes]
) -> tuple[int, tuple[bool, ...]]:
    """The width inside the MLP, the largest of `sizes` if layers have sizes of their own, and which layers have one.

    A list of widths has 0 for a layer without one.
    """
    if sizes:
        return max(size.ff_width for size in sizes), (traits.has_mlp,) * layers
    if traits.single_blocks:
        widths = keys.integers("feed_forward_length", layers, 0)
        distinct = sorted(set(widths) - {0})
        keys.expect("feed_forward_length", len(distinct) == 1, "one number for all layers with an MLP, or 0")
        return distinct[0], tuple(width > 0 for width in widths)
    absent = keys.raw("expert_feed_forward_length") if traits.has_mlp else 0  # files without dense layers lack it
    width = keys.integer("feed_forward_length", absent, minimum=int(traits.has_mlp))
    return width // 2 if traits.halved_mlp else width, (traits.has_mlp,) * layers


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
