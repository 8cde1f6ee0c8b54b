"""Qwen 3: Qwen 2 usually without biases, with norms on the heads of q and k and an independent head size."""

from lltool.quant.convert.families import qwen2
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import ByTensor, HeadDim
from lltool.quant.convert.families.tables import LLAMA_NAMES, decoder, layer

QWEN3 = Family(
    architecture="qwen3",
    models=("Qwen3ForCausalLM", "Qwen3Model"),
    model_types=("qwen3",),
    rows=decoder(
        layer(LLAMA_NAMES, biases=dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), "attention_bias"))
    ),
    defaults={**qwen2.QWEN2.defaults, "head_dim": 128},
    settings=(ByTensor("attention_bias", "blk.0.attn_q.bias"), *qwen2.SETTINGS, HeadDim(always=True)),
)
