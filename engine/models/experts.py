"""The block of experts, which has the place of the MLP in some or all layers."""

from typing import cast

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import mlp
from lltool.engine.operations.elementwise import Activation, PlainActivation, activate, add, gated, scale
from lltool.engine.operations.experts import combine, expert_linear, route, shared_gate, weigh
from lltool.engine.operations.linear import linear
from lltool.engine.program import Buffer, Tracer


def feed_forward(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer | None = None) -> Buffer:
    """The MLP or the experts of the layer."""
    mixture, traits = config.mixture, config.traits.mixture
    has_experts = mixture is not None and mixture.is_in(layer)
    if traits is not None and traits.by_router:
        has_experts &= f"blk.{layer}.ffn_gate_inp.weight" in g.weights
    return (experts if has_experts else mlp)(g, config, layer, x, residual)


def experts(
    g: Tracer,
    config: ModelConfig,
    layer: int,
    x: Buffer,
    residual: Buffer | None = None,
    routed: Buffer | None = None,
) -> Buffer:
    """The weighted sum of a token's experts, and of the shared expert if there is one; adds `residual`.

    The router reads x, or `routed`.
    """
    name, mixture = f"blk.{layer}.", config.mixture
    assert mixture is not None
    count, bias, scales = mixture.routing.experts, f"{name}exp_probs_b.bias", f"{name}ffn_down_exps.scale"
    (logits,) = linear(g, x if routed is None else routed, [f"{name}ffn_gate_inp.weight"], [count])
    stored_bias, stored_scales = (tensor if tensor in g.weights else None for tensor in (bias, scales))
    chosen, weights = route(g, logits, mixture.routing, stored_bias, stored_scales)
    width, inputs = mixture.latent_width or config.width, x
    if mixture.latent_width:
        (inputs,) = linear(g, x, [f"{name}ffn_latent_down.weight"], [width])
    inputs = weigh(g, inputs, chosen, weights) if mixture.weighs_inputs else inputs
    factors = None if mixture.weighs_inputs else weights
    names = [f"{name}ffn_gate_exps.weight", f"{name}ffn_up_exps.weight"]
    if (fused := f"{name}ffn_gate_up_exps.weight") in g.weights:
        names = [fused] * 2
    if config.traits.is_gated:
        gate, up = expert_linear(g, inputs, chosen, count, names, [mixture.width] * 2)
        hidden = gated(g, gate, up, cast(Activation, config.traits.activation))
    else:
        (up,) = expert_linear(g, inputs, chosen, count, names[1:], [mixture.width])
        hidden = activate(g, up, cast(PlainActivation, config.traits.activation))
    (made,) = expert_linear(g, hidden, chosen, count, [f"{name}ffn_down_exps.weight"], [width])
    if mixture.shared_width:
        gate_weight = f"{name}ffn_gate_inp_shexp.weight"
        is_gated = gate_weight in g.weights
        shared = mlp(g, config, layer, x, None if is_gated else residual, mixture.shared_width)
        if is_gated:
            shared = shared_gate(g, shared, x, gate_weight)
            shared = shared if residual is None else add(g, shared, residual)
        residual = shared
    if mixture.latent_width:
        total = combine(g, made, chosen, factors)
        return linear(g, total, [f"{name}ffn_latent_up.weight"], [config.width], residual)[0]
    if config.residual_scale == 1 or residual is None:
        return combine(g, made, chosen, factors, residual)
    return add(g, scale(g, combine(g, made, chosen, factors), config.residual_scale), residual)
