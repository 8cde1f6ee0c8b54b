"""The gated delta rule and the parts of columns: against transformers' recurrences, and under every instruction set."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.delta import gated_delta
from lltool.engine.operations.elementwise import gated
from lltool.engine.operations.linear import linear
from lltool.engine.operations.split import split
from lltool.engine.program import Buffer, Calls, Cost, Program, Rows, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_cpu import ISAS, VOCAB, Array, f32_weight, one_sequence, program, run_all, vector
from tests.engine.cpu.test_cpu import compare as compare_rows
from tests.engine.operations.test_recurrent import CUTS, WHOLE, compare, run_cuts


@dataclass(frozen=True)
class Net:
    """The sizes of a gated delta net; `each` dimension of a key may decay by itself."""

    key_heads: int
    heads: int
    key_dim: int
    value_dim: int
    tiled: bool = False
    each: bool = False

    @property
    def alpha_width(self) -> int:
        return self.heads * (self.key_dim if self.each else 1)

    @property
    def width(self) -> int:
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    def program(self) -> Program:
        """Gives what the net makes of random rows, whose first columns also give its decays and strengths."""
        rng = np.random.default_rng(3)
        weights = [
            f32_weight("embed", rng.standard_normal((VOCAB, self.width), np.float32)),
            f32_weight("beta.weight", rng.standard_normal((self.heads, self.width), np.float32) / 8),
            f32_weight("alpha.weight", rng.standard_normal((self.alpha_width, self.width), np.float32) / 8),
            vector("rate", -np.exp(rng.uniform(-4, 1, self.heads)).astype(np.float32)),
            vector("bias", rng.standard_normal(self.alpha_width, np.float32)),
        ]

        def build(g: Tracer, x: Buffer) -> Buffer:
            beta, alpha = linear(g, x, ["beta.weight", "alpha.weight"], [self.heads, self.alpha_width])
            sizes = {"key_heads": self.key_heads, "key_dim": self.key_dim}
            return gated_delta(g, x, beta, alpha, rate="rate", bias="bias", layer=0, tiled=self.tiled, **sizes)

        return program(weights, self.width, build)


NETS = [
    Net(2, 6, 128, 128),
    Net(3, 3, 20, 12),
    Net(2, 4, 18, 70, tiled=True),
    Net(1, 5, 7, 1, each=True),
    Net(2, 2, 64, 64, each=True),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("net", NETS)
def test_the_native_kernel(net: Net, isa: str) -> None:
    compare(net.program(), isa, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_token_has_the_same_bits_in_every_batch(threads: int, isa: str) -> None:
    made = Net(2, 4, 24, 40, tiled=True).program()
    settings = {"slots": 5, "max_batch": 128, "precision": "f32", "deterministic": True, "instruction_set": isa}
    executor = CpuExecutor(made, 3, threads=threads, **settings)  # type: ignore[arg-type]
    for found, wanted in zip(run_cuts(executor, CUTS), run_cuts(executor, WHOLE), strict=True):
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("net", NETS)
def test_the_reference_is_what_transformers_computes(net: Net) -> None:
    import torch
    from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    made, batch = net.program(), replace(one_sequence(50), slots=np.zeros(1, np.int32))
    found = run_all(ReferenceExecutor(made, 1, slots=1, dtype=np.float64), batch)

    def weight(name: str) -> Array:
        stored = made.weights[name]
        return stored.data.view(np.float32).reshape(stored.shape)

    rows = weight("embed")[batch.tokens]
    keys, group = net.key_heads * net.key_dim, net.heads // net.key_heads
    q, k = (rows[:, i * keys : (i + 1) * keys].reshape(50, net.key_heads, net.key_dim) for i in range(2))
    key_head = [h % net.key_heads if net.tiled else h // group for h in range(net.heads)]
    v = rows[:, 2 * keys :].reshape(50, net.heads, net.value_dim)
    alpha = torch.tensor(rows @ weight("alpha.weight").T + weight("bias")).reshape(50, net.heads, -1)
    decay = torch.tensor(weight("rate"))[:, None] * torch.nn.functional.softplus(alpha)
    beta = torch.sigmoid(torch.tensor(rows @ weight("beta.weight").T))
    q, k, v = (torch.tensor(x)[None] for x in (q[:, key_head], k[:, key_head], v))
    recur = recurrent_kimi_delta_attention if net.each else torch_recurrent_gated_delta_rule
    decay = decay if net.each else decay[..., 0]
    wanted, _ = recur(q, k, v, decay[None], beta[None], None, False, use_qk_l2norm_in_kernel=True)
    wanted = wanted[0].reshape(50, -1).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_its_cost_and_state() -> None:
    (op,) = (op for op in Net(2, 6, 16, 8).program().ops if op.state)
    (slot,) = op.state
    assert (slot.name, slot.shape) == ("blk.0.delta", (6, 16, 8))
    calls = Calls({Rows.TOKEN: [5, 2]}, [(0, 3), (7, 2), (9, 2)], GGMLType.F16, GGMLType.F16)
    assert op.cost(calls, {}) == Cost(3 * 6 * 16 * 8 * 4, floats=7 * 3 * 6 * 16 * 8)


def test_keys_that_the_kernel_does_not_take() -> None:
    with pytest.raises(InputError, match="layer 0: keys of 260; the kernel takes at most 256"):
        CpuExecutor(Net(1, 1, 260, 4).program(), 1, slots=1, max_batch=8, threads=1)


@pytest.mark.parametrize("isa", ISAS)
def test_parts_of_columns(isa: str) -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((VOCAB, 60), np.float32)

    def build(g: Tracer, x: Buffer) -> Buffer:
        _, gate, up = split(g, x, [12, 24, 24], groups=3)
        return gated(g, gate, up, "sigmoid")

    made = program([f32_weight("embed", values)], 60, build)
    compare_rows(made, one_sequence(37), isa, 1e-6)
    found = run_all(ReferenceExecutor(made, 1), one_sequence(10))
    parts = values[one_sequence(10).tokens].reshape(10, 3, 20)
    gate, up = parts[..., 4:12].reshape(10, 24), parts[..., 12:].reshape(10, 24)
    np.testing.assert_allclose(found, up / (1 + np.exp(-gate)), rtol=1e-5)
