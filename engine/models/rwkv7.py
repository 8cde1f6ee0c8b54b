"""RWKV 7: blocks of time mixing, which has the place of attention, and of channel mixing, that of an MLP."""

from dataclasses import dataclass

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import embedding, project
from lltool.engine.models.heads import head
from lltool.engine.models.norms import normed
from lltool.engine.models.time_mixing import TimeMixing
from lltool.engine.operations.elementwise import PlainActivation, activate, add, add_vector, multiply, product
from lltool.engine.operations.linear import linear
from lltool.engine.operations.norm import layer_norm
from lltool.engine.operations.rwkv import time_mix, token_shift
from lltool.engine.program import Buffer, Tracer

_HEAD_EPS = 64e-5  # of the norm of each head, as all models have it; no key of a file states it


def trace(g: Tracer, config: ModelConfig) -> None:
    assert config.time_mixing is not None
    x = g.end_block(embedding(g, config))
    first: Buffer | None = None  # the first block's values, which the others mix with their own
    for layer in range(config.layers):
        h = normed(g, config, x, f"blk.{layer}.attn_norm")
        block = _Block(g, config, f"blk.{layer}.", config.time_mixing)
        x, first = block.mix_time(h, x, first)
        x = block.mix_channels(normed(g, config, x, f"blk.{layer}.attn_norm_2"), x)
        g.end_block(x)
    head(g, config, x)


@dataclass(frozen=True)
class _Block:
    g: Tracer
    config: ModelConfig
    name: str
    sizes: TimeMixing

    def mix_time(self, x: Buffer, residual: Buffer, first: Buffer | None) -> tuple[Buffer, Buffer]:
        """Time mixing of the normed x, with `residual`, and the first block's values."""
        g, name, sizes, width = self.g, self.name, self.sizes, x.width
        xr, xw, xk, xv, xa, xg = token_shift(g, x, f"{name}time_mix_lerp_fused.weight", 6)
        parts = (("receptance", xr), ("key", xk), ("value", xv))
        r, k, v = (linear(g, part, [f"{name}time_mix_{kind}.weight"], [width])[0] for kind, part in parts)
        w = self._narrow(xw, "w", sizes.decay_rank, "tanh")
        a = self._narrow(xa, "a", sizes.rate_rank)
        gate = self._narrow(xg, "g", sizes.gate_rank, "sigmoid", is_shifted=False)
        if first is None:
            g.used.update(f"{name}time_mix_v{part}.weight" for part in range(3))  # llama.cpp wants them; nothing does
        mix = None if first is None else (first, self._narrow(xv, "v", sizes.value_rank))
        weights = (f"{name}time_mix_k_k.weight", f"{name}time_mix_k_a.weight", f"{name}time_mix_r_k.weight")
        out, bonus = time_mix(g, r, w, k, v, a, mix, weights=weights, heads=sizes.heads)
        out = layer_norm(g, out, None, _HEAD_EPS, sizes.heads)
        out = multiply(g, out, f"{name}time_mix_ln.weight", (width,))
        out = add(g, add_vector(g, out, f"{name}time_mix_ln.bias"), bonus)
        out = project(g, self.config, product(g, out, gate), f"{name}time_mix_output.weight", residual)
        return out, v if first is None else first

    def mix_channels(self, x: Buffer, residual: Buffer) -> Buffer:
        (shifted,) = token_shift(self.g, x, f"{self.name}channel_mix_lerp_k.weight", 1)
        (k,) = linear(self.g, shifted, [f"{self.name}channel_mix_key.weight"], [self.config.ff_width])
        hidden = activate(self.g, k, "relu_squared")
        return project(self.g, self.config, hidden, f"{self.name}channel_mix_value.weight", residual)

    def _narrow(
        self, x: Buffer, kind: str, rank: int, activation: PlainActivation | None = None, *, is_shifted: bool = True
    ) -> Buffer:
        """Two matrices with `rank` values between them, and a vector that is added."""
        names = [f"{self.name}time_mix_{kind}{part}.weight" for part in range(3)]
        (h,) = linear(self.g, x, names[1:2], [rank])
        h = h if activation is None else activate(self.g, h, activation)
        (out,) = linear(self.g, h, names[2:], [x.width])
        return add_vector(self.g, out, names[0]) if is_shifted else out
