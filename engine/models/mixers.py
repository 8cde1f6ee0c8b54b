"""The mixers of tokens other than attention: short convolutions, and the scans of Mamba 1 and 2."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import project
from lltool.engine.models.recurrent import Recurrent
from lltool.engine.operations.convolution import convolution
from lltool.engine.operations.elementwise import gated, multiply, product
from lltool.engine.operations.linear import linear
from lltool.engine.operations.norm import norm
from lltool.engine.operations.scan import scan, selective_scan
from lltool.engine.program import Buffer, Tracer

_PLAIN_EPS = 1e-6  # of Falcon Mamba, the only models with norms without weights; no key of a file states it


def mix(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer | None = None) -> Buffer:
    """The mixer of the architecture on the normed x; adds `residual`."""
    name, sizes = f"blk.{layer}.", config.recurrent
    assert sizes is not None
    if sizes.kind == "short convolution":
        out, weight = _short_convolution(g, sizes, name, x), f"{name}shortconv.out_proj.weight"
    elif sizes.kind == "mamba":
        out, weight = _mamba(g, config, sizes, name, x), f"{name}ssm_out.weight"
    else:
        out, weight = _mamba2(g, config, sizes, name, x), f"{name}ssm_out.weight"
    return project(g, config, out, weight, residual)


def _short_convolution(g: Tracer, sizes: Recurrent, name: str, x: Buffer) -> Buffer:
    """A convolution between two gates. Source: the code of LFM2."""
    b, c, h = linear(g, x, [f"{name}shortconv.in_proj.weight"] * 3, [x.width] * 3)
    h = convolution(g, product(g, b, h), f"{name}shortconv.conv.weight", sizes.taps)
    return product(g, c, h)


def _mamba(g: Tracer, config: ModelConfig, sizes: Recurrent, name: str, x: Buffer) -> Buffer:
    """Source: Gu and Dao 2023 (Mamba), figure 3; Jamba and Falcon Mamba norm steps, b and c."""
    h, gate = linear(g, x, [f"{name}ssm_in.weight"] * 2, [sizes.inner] * 2)
    h = convolution(g, h, f"{name}ssm_conv1d.weight", sizes.taps, "silu")
    parts = linear(g, h, [f"{name}ssm_x.weight"] * 3, [sizes.rank, sizes.states, sizes.states])
    names = [f"{name}ssm_{part}_norm.weight" for part in ("dt", "b", "c")]
    if sizes.plain_norms:
        parts = tuple(norm(g, part, None, _PLAIN_EPS) for part in parts)
    elif config.traits.step_norms:
        parts = tuple(norm(g, part, weight, config.norm_eps) for part, weight in zip(parts, names, strict=True))
    step, b, c = parts
    (step,) = linear(g, step, [f"{name}ssm_dt.weight"], [sizes.inner])
    return gated(g, gate, selective_scan(g, h, step, b, c, f"{name}ssm_a", f"{name}ssm_d"), "silu")


def _mamba2(g: Tracer, config: ModelConfig, sizes: Recurrent, name: str, x: Buffer) -> Buffer:
    """Source: Dao and Gu 2024 (Mamba-2), figure 6, with the norm after the gate."""
    shared = 2 * sizes.groups * sizes.states
    gate, h, step = linear(g, x, [f"{name}ssm_in.weight"] * 3, [sizes.inner, sizes.inner + shared, sizes.rank])
    h = convolution(g, h, f"{name}ssm_conv1d.weight", sizes.taps, "silu")
    h = scan(g, h, step, sizes.inner, sizes.groups, f"{name}ssm_a", f"{name}ssm_d", f"{name}ssm_dt.bias")
    h = gated(g, gate, h, "silu")
    if config.traits.mixer_norm == "if stored" and f"{name}ssm_norm.weight" not in g.weights:
        return h
    h = norm(g, h, None, config.norm_eps, sizes.groups)
    return multiply(g, h, f"{name}ssm_norm.weight", (sizes.groups, sizes.inner // sizes.groups))
