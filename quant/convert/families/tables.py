"""Rows that tables of tensors share: GGUF has the same names in all families, checkpoints have their own."""

from collections.abc import Mapping

from lltool.quant.convert.families.changes import SAME, Change, Transpose
from lltool.quant.convert.families.rows import Row

Bias = str
"""`no`, `always`, `if stored`, or the config key that says whether a matrix has a bias."""

GROUPED = "num_attention_heads * head_dim + 2 * num_key_value_heads * head_dim"
"""Rows of a fused matrix of queries, keys and values."""

FUSED_BIASES: Mapping[str, Bias] = dict.fromkeys(
    ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"), "always"
)
"""For layers in which every module has a bias, with a fused matrix of queries, keys and values and no gate."""

LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The checkpoint's names of a layer's modules, in the order of the file, as Llama's checkpoints have them."""

_SHAPES = {
    "attn_q": ("queries", "width"),
    "attn_k": ("keys", "width"),
    "attn_v": ("keys", "width"),
    "attn_qkv": (GROUPED, "width"),
    "attn_output": ("width", "queries"),
    "attn_q_norm": ("head",),
    "attn_k_norm": ("head",),
    "ffn_gate": ("hidden", "width"),
    "ffn_up": ("hidden", "width"),
    "ffn_down": ("width", "hidden"),
}


def module(
    gguf: str, source: str, shape: tuple[str, ...], change: Change = SAME, bias: Bias = "no", bias_change: Change = SAME
) -> tuple[Row, ...]:
    """The rows of a module's weight and of its bias, if it can have one."""
    rows = (Row(f"{gguf}.weight", f"{source}.weight", shape, change),)
    if bias == "no":
        return rows
    when = "" if bias in ("always", "if stored") else bias
    vector = (shape[1] if isinstance(change, Transpose) else shape[0],)
    optional = bias == "if stored"
    return (*rows, Row(f"{gguf}.bias", f"{source}.bias", vector, bias_change, when, optional=optional))


def layer(
    names: Mapping[str, str],
    *,
    base: str = "model.layers.{}.",
    changes: Mapping[str, Change] | None = None,
    biases: Mapping[str, Bias] | None = None,
    shapes: Mapping[str, tuple[str, ...]] | None = None,
    bias_changes: Mapping[str, Change] | None = None,
) -> tuple[Row, ...]:
    """The rows of each layer: `names` are the checkpoint's by GGUF's; norms have the model's width.

    `changes` apply to weights, and to biases too where `bias_changes` does not name another.
    """
    rows: tuple[Row, ...] = ()
    changes, biases, shapes = changes or {}, biases or {}, shapes or {}
    for gguf, source in names.items():
        change = changes.get(gguf, SAME)
        shape = shapes.get(gguf, _SHAPES.get(gguf, ("width",)))
        bias_change = (bias_changes or {}).get(gguf, change)
        rows += module(f"blk.{{}}.{gguf}", base + source, shape, change, biases.get(gguf, "no"), bias_change)
    return rows


def decoder(
    rows: tuple[Row, ...],
    *,
    embedding: str = "model.embed_tokens",
    norm: str = "model.norm",
    head: str = "lm_head",
    norm_name: str = "output_norm",
    norm_bias: Bias = "no",
    norm_change: Change = SAME,
    head_bias: Bias = "no",
    more: tuple[Row, ...] = (),
) -> tuple[Row, ...]:
    """The embedding, `more` rows before the layers, the layers' rows, the last norm and the output matrix.

    `norm_name` is GGUF's name of the last norm.
    """
    return (
        *module("token_embd", embedding, ("vocab", "width")),
        *more,
        *rows,
        *module(norm_name, norm, ("width",), norm_change, norm_bias),
        *module("output", head, ("vocab", "width"), SAME, head_bias),
    )


def reorder(names: Mapping[str, str], *, without: tuple[str, ...] = (), **changed: str) -> dict[str, str]:
    """`names` without some of them, and with others changed or, at the end, added."""
    return {gguf: source for gguf, source in {**names, **changed}.items() if gguf not in without}
