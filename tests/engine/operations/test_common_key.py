"""What a bias gives to all keys alike is left out of caches whose types have blocks."""

from dataclasses import replace

import numpy as np
import pytest

from lltool.engine.batch import CacheType
from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.attention import Attention, attend
from lltool.engine.operations.linear import linear
from lltool.engine.operations.rope import POSITIONS, Rope, rope
from lltool.engine.program import Buffer, Program, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
from tests.engine.cpu.test_cpu import ISAS, QKV, VOCAB, Array, f32_weight, one_sequence, program, run_all, vector

HEAD = 64
FREQUENCIES = tuple(float(x) for x in 1e6 ** (-np.arange(HEAD // 2) / (HEAD // 2)))
TOKENS = 150


def made(bias: float, interleaved: bool = False, softcap: float = 0.0) -> Program:
    """Two heads on one of keys; `bias` is the largest of the keys' biases, in the pair that turns most slowly."""
    rng = np.random.default_rng(5)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, HEAD), np.float32))]
    rows = dict(zip(QKV, (2 * HEAD, HEAD, HEAD), strict=True))
    weights += [f32_weight(name, rng.standard_normal((n, HEAD), np.float32) / 8) for name, n in rows.items()]
    if bias:
        values = rng.standard_normal(HEAD).astype(np.float32)
        values[-1] = bias
        weights.append(vector("k.bias", values))

    def build(g: Tracer, x: Buffer) -> Buffer:
        q, k, v = linear(g, x, QKV, tuple(rows.values()))
        q, k = (rope(g, y, HEAD, FREQUENCIES, 1.0, interleaved) for y in (q, k))
        return attend(g, q, k, v, layer=0, head_dim=HEAD, scale=1 / 8, window=0, softcap=softcap)

    return program(weights, HEAD, build)


def attention_of(program: Program) -> Attention:
    return next(op for op in program.ops if isinstance(op, Attention))


def outputs(program: Program, key_type: CacheType) -> Array:
    reference = ReferenceExecutor(program, 3, dtype=np.float64, cache_type_k=key_type)
    return run_all(reference, one_sequence(TOKENS))


@pytest.mark.parametrize("interleaved", [False, True])
def test_it_is_the_mean_of_the_rotated_bias(interleaved: bool) -> None:
    built = made(50, interleaved)
    rope = next(op for op in built.ops if isinstance(op, Rope))
    found = attention_of(built).common_key(built, "q4_0")
    assert found is not None
    assert found.shape == (1, HEAD)
    bias = built.weights["k.bias"].data.view(np.float32).reshape(HEAD).astype(np.float64)
    pairs = bias.reshape(-1, 2) if interleaved else bias.reshape(2, -1).T  # (pairs, 2)
    angles = np.outer(np.arange(POSITIONS), rope.frequencies)
    turned = ((pairs[:, 0] + 1j * pairs[:, 1]) * np.exp(1j * angles)).mean(axis=0)
    expected = np.stack([turned.real, turned.imag], axis=0 if not interleaved else 1).reshape(HEAD)
    # The mean is taken as an integral: what differs is at most one step in POSITIONS.
    assert np.abs(found[0] - expected).max() < 4 / POSITIONS
    assert found[0, -1] == pytest.approx(50, rel=1e-3)  # the slowest pair turns by 0.006 in all


def test_what_the_softmax_would_see_is_kept() -> None:
    assert attention_of(made(0)).common_key(made(0), "q4_0") is None
    assert attention_of(made(50)).common_key(made(50), "f16") is None
    assert attention_of(made(50, softcap=20.0)).common_key(made(50, softcap=20.0), "q4_0") is None
    attention = attention_of(made(50))
    assert replace(attention, v=attention.k).common_key(made(50), "q4_0") is None  # values are views of keys


@pytest.mark.parametrize("key_type", ["q4_0", "q8_0"])
def test_a_large_bias_of_keys_costs_nothing(key_type: CacheType) -> None:
    """Rounded with the keys, a bias of 50 would have 40 times the energy of all else in a key of 64.

    The biases of other pairs are as large as the keys themselves: what of them turns stays, and doubles the energy.
    """
    errors = [np.square(outputs(made(bias), key_type) - outputs(made(bias), "f32")).mean() for bias in (0, 50)]
    assert errors[1] < 2.5 * errors[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_native_is_the_reference(isa: str, interleaved: bool) -> None:
    built = made(50, interleaved)
    cpu = CpuExecutor(
        built,
        3,
        max_batch=TOKENS,
        threads=2,
        precision="f32",
        cache_type_k="q4_0",
        cache_type_v="f32",
        instruction_set=isa,
    )
    expected = outputs(built, "q4_0")
    # Keys are made in float32, which may move a block's scale to the next number of 16 bits, by one in 2048.
    assert np.abs(run_all(cpu, one_sequence(TOKENS)) - expected).max() < 2e-3 * np.abs(expected).max()
