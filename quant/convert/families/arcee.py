"""Arcee's AFM: Llama's blocks with an MLP that has no gate."""

from lltool.quant.convert.families import llama
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, ByTensor, Fixed
from lltool.quant.convert.families.rope import ROPE_TYPES, Rope
from lltool.quant.convert.families.tables import decoder, layer, reorder

ARCEE = Family(
    architecture="arcee",
    models=("ArceeForCausalLM", "ArceeModel"),
    model_types=("arcee",),
    rows=decoder(
        layer(reorder(llama.NAMES, without=("ffn_gate",)), changes=llama.PAIRS, biases=llama.BIASES),
    ),
    defaults={
        **llama.SIZES_7B,
        "hidden_size": 2560,
        "intermediate_size": 18432,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    settings=(
        Fixed("hidden_act", "relu2"),
        *DECODER,
        Rope(ROPE_TYPES, dims=True),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        ByTensor("mlp_bias", "blk.0.ffn_up.bias"),
    ),
)
