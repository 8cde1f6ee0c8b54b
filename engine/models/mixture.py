"""The mixture of experts that a model's metadata describes."""

from dataclasses import dataclass

from lltool.engine.operations.experts import Routing, Scoring
from lltool.gguf.architecture_keys import SCALES, ArchitectureKeys

# The keys' names for ways to score: the third takes the softmax of the chosen logits.
_SCORINGS: dict[int, Scoring] = {1: "softmax", 2: "sigmoid", 3: "softmax"}
_OF_THE_CHOSEN = 3


@dataclass(frozen=True)
class MixtureTraits:
    """What an architecture's files do not state, or do not have to."""

    scoring: Scoring = "softmax"
    normalized: bool = False
    by_router: bool = False  # the layers with experts are those with the tensor that routes
    weighs_inputs: bool = False  # an expert's input is multiplied by its weight, not its output
    has_shared: bool = False  # a shared expert of the same width, which no key states
    best_of_groups: bool = False  # with a softmax, a group counts as much as its best expert alone


@dataclass(frozen=True)
class Mixture:
    """The experts of the blocks from number `first` on, in every `step`-th block.

    `width` is the number of hidden values of an expert; `shared_width` that of the block that all tokens pass through,
    0 if there is none.
    """

    routing: Routing
    width: int
    shared_width: int
    first: int
    step: int
    weighs_inputs: bool
    latent_width: int  # of what experts read and make, if it is not the model's width; else 0

    def is_in(self, layer: int) -> bool:
        return layer >= self.first and (layer + 1) % self.step == 0


def read_mixture(keys: ArchitectureKeys, traits: MixtureTraits | None, ff_width: int) -> Mixture | None:
    """None for a model without experts. Raises InputError if a value is absurd."""
    if traits is None or keys.integer("expert_count", 0, minimum=0) == 0:
        return None
    experts, used = keys.integer("expert_count"), keys.integer("expert_used_count")
    keys.expect("expert_used_count", used <= experts, f"at most the {experts} experts")
    groups, groups_used = keys.integer("expert_group_count", 1), keys.integer("expert_group_used_count", 1)
    keys.expect("expert_group_count", experts % groups == 0, f"a divisor of the {experts} experts")
    keys.expect("expert_group_used_count", groups_used <= groups, f"at most the {groups} groups")
    keys.expect("expert_used_count", used <= experts // groups * groups_used, "at most the experts of the groups used")
    scoring = keys.integer("expert_gating_func", 0, minimum=0)
    keys.expect("expert_gating_func", scoring == 0 or scoring in _SCORINGS, "1 (softmax), 2 (sigmoid) or 3")
    rule = _SCORINGS[scoring] if scoring else traits.scoring
    normalized = keys.flag("expert_weights_norm", traits.normalized)
    width = keys.integer("expert_feed_forward_length", ff_width)
    shared = keys.integer("expert_shared_count", int(traits.has_shared), minimum=0) * width
    return Mixture(
        routing=Routing(
            experts=experts,
            used=used,
            scoring=rule,
            normalized=normalized or scoring == _OF_THE_CHOSEN,
            factor=keys.number("expert_weights_scale", 0.0, *SCALES) or 1.0,
            groups=groups,
            groups_used=groups_used,
            counted=1 if traits.best_of_groups and rule == "softmax" else 2,
        ),
        width=width,
        shared_width=keys.integer("expert_shared_feed_forward_length", shared, minimum=0),
        first=keys.integer("leading_dense_block_count", 0, minimum=0),
        step=keys.integer("interleave_moe_layer_step", 1),
        weighs_inputs=traits.weighs_inputs,
        latent_width=keys.integer("moe_latent_size", 0, minimum=0),
    )
