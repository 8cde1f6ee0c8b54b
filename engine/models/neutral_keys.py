"""Keys that a file may have although this version does not read them."""

from typing import Any

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
    "decoder_start_token_id": None,  # of a decoder that an encoder's file does not have
    "rope.dimension_sections": None,  # of images' positions; in a text, all sections have the token's
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
    "expert_shared_feed_forward_length": None,  # of a model with experts it is read
    # The sizes of scans, which llama.cpp's converter writes for all Granite 4 models, also for those without a scan.
    **dict.fromkeys(
        f"ssm.{key}" for key in ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank")
    ),
}
