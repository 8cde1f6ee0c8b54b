"""What each architecture has that its files do not state: a row for each that this version runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lltool.engine.models.delta_net import HeadOrder
from lltool.engine.models.mixture import MixtureTraits
from lltool.engine.models.pooling import Pooling
from lltool.engine.models.recurrent import Attends, Mixer
from lltool.engine.models.temper import Tempered
from lltool.engine.operations.elementwise import Activation, PlainActivation

Scaled = Literal["embedding_scale", "residual_scale", "logit_scale"]


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
    kimi_delta: bool = False  # layers without attention have Kimi's delta attention
    plain_head_norms: bool = False  # norms without weights, of heads with rotary positions
    is_chunked: bool = False  # a sliding window is a chunk: a query sees the keys of its own chunk alone
    plain_value_norms: bool = False  # norms without weights, of heads
    values_of_keys: bool = False  # without a matrix of their own, values are keys before norms
    unscaled: bool = False  # scores of attention, unless the file states a scale
    sizes_by_layer: bool = False  # layers may differ in their heads and widths, and share keys and values
    has_streams: bool = False  # several residual streams (AltUp), and gates that are made sparse
    distance_bias: bool = False  # of scores, by the distance between query and key (T5)
    ungated: PlainActivation | None = None  # the activation of files without gates, if there are such files
    prefix: str = ""  # of the names of a layer's tensors
    attention_output: str = "attn_output"  # the name of the matrix after attention
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
    full_layers_first: bool = False  # the first of such a period has full attention, not the last
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
    time_mixing: bool = False  # RWKV 7's, in the place of attention
    has_mlp: bool = True
    single_blocks: bool = False  # a block is a mixer, attention or an MLP, and the file's list of widths says which
    causal: bool = True  # whether a token sees only those before it, unless the file says so
    rank_pooling: Pooling = "last"  # of rerankers
    classifier_activation: PlainActivation = "tanh"
    bare_first_layer: bool = False  # its attention has no norm before it
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
_GEMMA3N = replace(_GEMMA3, plain_value_norms=True, unscaled=True, sizes_by_layer=True)
_BERT = Architecture(norm="layer", activation="gelu", causal=False, rank_pooling="cls")

_LFM2 = Architecture(head_norms="always", mixer="short convolution", attends="stated", output_norm="token_embd_norm")
_NEMOTRON_H = Architecture(
    rotates="none",
    mixer="mamba2",
    attends="stated",
    single_blocks=True,
    activation="relu_squared",
    is_gated=False,
    extra_blocks=True,
)

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
    "kimi-linear": Architecture(
        rotates="none",
        latent=True,
        attends="stated",
        kimi_delta=True,
        mixture=MixtureTraits(scoring="sigmoid", normalized=True),
    ),
    "minimax-m2": Architecture(head_norms="always", mixture=MixtureTraits(scoring="sigmoid", normalized=True)),
    "hunyuan-moe": Architecture(head_norms="always", norms_after_rope=True, mixture=MixtureTraits(normalized=True)),
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
    "gemma3n": replace(_GEMMA3N, sliding_period=5, has_streams=True),
    "gemma4": replace(_GEMMA3N, values_of_keys=True, mixture=MixtureTraits(normalized=True)),
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
    "nemotron_h": _NEMOTRON_H,
    "nemotron_h_moe": replace(_NEMOTRON_H, mixture=MixtureTraits(scoring="sigmoid", normalized=True)),
    "rwkv7": Architecture(rotates="none", norm="layer", attends="none", time_mixing=True),
    "jamba": Architecture(
        rotates="none", mixer="mamba", step_norms=True, attends="stated", mixture=MixtureTraits(by_router=True)
    ),
    # BERT, MiniLM, BGE, GTE, E5; with its positions cut RoBERTa and XLM-RoBERTa
    "bert": replace(_BERT, rotates="none", is_gated=False),
    "nomic-bert": replace(_BERT, activation="silu"),
    "jina-bert-v2": replace(_BERT, rotates="none", alibi_bias=8.0, head_norms="if stored"),
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
    "t5encoder": Architecture(  # also of mT5 and UMT5
        rotates="none",
        activation="gelu_tanh",
        ungated="relu",
        unscaled=True,
        distance_bias=True,
        causal=False,
        prefix="enc.",
        attention_output="attn_o",
        output_norm="enc.output_norm",
    ),
    "gemma-embedding": replace(_GEMMA3, causal=False),
}
