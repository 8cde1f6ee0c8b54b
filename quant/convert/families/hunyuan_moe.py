"""Hunyuan with experts: Hunyuan's blocks with experts beside a shared one."""

from dataclasses import replace
from typing import Any

from lltool.gguf.metadata import u32
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import Experts, router_row, single_rows, stacked_rows
from lltool.quant.convert.families.keys import Expected, Keys, Setting, Unused
from lltool.quant.convert.families.llama_variants import HUNYUAN_DENSE
from lltool.quant.convert.families.qwen_moe import replace_mlp
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored

_MLP, _HIDDEN = "model.layers.{}.mlp.", "moe_intermediate_size"
_SHARED = {"gate": ("hidden", "width"), "up": ("hidden", "width"), "down": ("width", "hidden")}


class _EqualLayers(Setting):
    """Numbers that published configs have as lists, with one for each layer."""

    keys = ("moe_topk", _HIDDEN, "num_shared_expert", "num_experts")

    def describe(self, config: Config) -> Keys:
        for key in self.keys:
            found = config.get(key)
            if isinstance(found, list):
                config.require(key, bool(found) and len(set(map(str, found))) == 1, "one number for all layers")
                config.derive(key, found[0])
        config.derive(_HIDDEN, config.integer(_HIDDEN, config.integer("intermediate_size")))
        config.expect("num_shared_expert", 1)
        return {
            "expert_feed_forward_length": u32(config.values[_HIDDEN]),
            "expert_shared_feed_forward_length": u32(config.values["intermediate_size"]),
            "expert_shared_count": u32(1),
        }

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        width = stored.integer("expert_feed_forward_length")
        shared = stored.integer("expert_shared_feed_forward_length", config["intermediate_size"])
        stored.require("expert_shared_feed_forward_length", shared == width, f"{width}, as each expert has")
        return {_HIDDEN: width, "intermediate_size": width}


HUNYUAN_MOE = replace(
    HUNYUAN_DENSE,
    architecture="hunyuan-moe",
    models=("HunYuanMoEV1ForCausalLM", "HunYuanMoEV1Model"),
    model_types=("hunyuan_v1_moe", "hunyuan"),
    rows=replace_mlp(
        HUNYUAN_DENSE.rows,
        router_row(_MLP + "gate.wg.weight"),
        *single_rows(_MLP + "experts.{expert}.{part}.weight", _HIDDEN),
        *stacked_rows(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj", _HIDDEN),
        *(
            Row(f"blk.{{}}.ffn_{part}_shexp.weight", f"{_MLP}shared_mlp.{part}_proj.weight", shape)
            for part, shape in _SHARED.items()
        ),
    ),
    settings=(
        *(setting for setting in HUNYUAN_DENSE.settings if getattr(setting, "key", "") != "num_experts"),
        _EqualLayers(),
        Experts("num_experts", used="moe_topk"),
        Expected("use_mixed_mlp_moe", True),
        Expected("moe_layer_num_skipped", 0),
        Expected("norm_topk_prob", True),
        Unused("moe_drop_tokens", "moe_random_routing_dropped_token", "capacity_factor", "use_cla", "cla_share_factor"),
    ),
)
