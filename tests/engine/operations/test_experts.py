"""Mixtures of experts: the native executor against the reference, under every instruction set; and what they cost."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.cpu.fuse import fuse
from lltool.engine.operations.elementwise import Activation, add, gated
from lltool.engine.operations.experts import (
    ExpertLinear,
    Route,
    Routing,
    combine,
    expert_linear,
    route,
    shared_gate,
    weigh,
)
from lltool.engine.operations.linear import linear
from lltool.engine.operations.observe import observe_linears
from lltool.engine.program import Buffer, Calls, Cost, Program, Rows, Tracer, Weight
from lltool.engine.reference.context import Context
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_cpu import (
    ISAS,
    VOCAB,
    Array,
    compare,
    f32_weight,
    one_sequence,
    program,
    random_weight,
    run_all,
    vector,
)

WIDTH, HIDDEN, EXPERTS, USED = 64, 96, 12, 3
FEW = Routing(EXPERTS, USED)
NAMES = ("gate_exps.weight", "up_exps.weight", "down_exps.weight")


def stack(rng: np.random.Generator, name: str, type: GGMLType, rows: int, columns: int, experts: int) -> Weight:
    """A stack of random matrices."""
    made = random_weight(rng, name, type, experts * rows, columns)
    return replace(made, shape=(experts, rows, columns))


def mixture(
    type: GGMLType = GGMLType.F32,
    routing: Routing = FEW,
    *,
    width: int = WIDTH,
    hidden: int = HIDDEN,
    activation: Activation = "silu",
    biases: bool = False,
    choice_bias: bool = False,
    shared: bool = False,
    weights_inputs: bool = False,
    seed: int = 0,
) -> Program:
    """A whole mixture on the embeddings of tokens, with everything that is asked for."""
    rng = np.random.default_rng(seed)
    experts = routing.experts
    weights = [
        f32_weight("embed", rng.standard_normal((VOCAB, width), np.float32)),
        f32_weight("router.weight", rng.standard_normal((experts, width), np.float32) / 4),
        stack(rng, NAMES[0], type, hidden, width, experts),
        stack(rng, NAMES[1], type, hidden, width, experts),
        stack(rng, NAMES[2], type, width, hidden, experts),
    ]
    weights += [vector("shared", rng.standard_normal(width).astype(np.float32) / 4)] if shared else []
    if biases:
        for name, rows in zip(NAMES, (hidden, hidden, width), strict=True):
            values = rng.standard_normal((experts, rows)).astype(np.float32)
            weights.append(f32_weight(name.replace("weight", "bias"), values))
    bias = rng.standard_normal(experts).astype(np.float32)
    weights += [vector("choice", bias)] if choice_bias else []

    def build(g: Tracer, x: Buffer) -> Buffer:
        (logits,) = linear(g, x, ("router.weight",), (experts,))
        chosen, factors = route(g, logits, routing, "choice" if choice_bias else None)
        inputs = weigh(g, x, chosen, factors) if weights_inputs else x
        gate, up = expert_linear(g, inputs, chosen, experts, NAMES[:2], (hidden, hidden))
        (down,) = expert_linear(g, gated(g, gate, up, activation), chosen, experts, NAMES[2:], (width,))
        y = combine(g, down, chosen, None if weights_inputs else factors, x)
        return add(g, y, shared_gate(g, y, x, "shared")) if shared else y

    return program(weights, width, build)


ROUTINGS = {
    "softmax": Routing(EXPERTS, USED),
    "normalized": Routing(EXPERTS, USED, normalized=True, factor=2.5),
    "sigmoid": Routing(EXPERTS, USED, "sigmoid", normalized=True),
    "groups": Routing(EXPERTS, USED, "sigmoid", groups=4, groups_used=2),
    "groups of one": Routing(EXPERTS, USED, groups=12, groups_used=5),
    "groups by their best": Routing(EXPERTS, USED, groups=4, groups_used=2, counted=1),
    "one": Routing(EXPERTS, 1, "sigmoid"),
    "all": Routing(5, 5),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("choice_bias", [False, True])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_routing(isa: str, routing: str, choice_bias: bool) -> None:
    compare(mixture(routing=ROUTINGS[routing], choice_bias=choice_bias), one_sequence(33), isa, 1e-5)


def test_the_reference_routes_as_written() -> None:
    """Four experts in two groups, of which one is used: a bias moves the choice, and not the weights."""
    g = Tracer({"bias": vector("bias", np.array([0, 0, 0, 0.5], np.float32))})
    logits = g.buffer(4)
    routing = Routing(4, 2, "sigmoid", normalized=True, factor=3.0, groups=2, groups_used=1)
    g.add(Route(logits, (g.buffer(2, type=GGMLType.I32), g.buffer(2)), routing, "bias"))
    program = Program(tuple(g.ops), g.weights, (0, 16, 32), {Rows.TOKEN: 48}, logits)
    context = Context(program, 1, 0, np.float64, "f32", "f32")
    scores = np.array([[0.7, 0.6, 0.2, 0.65], [0.7, 0.6, 0.9, 0.35]])  # the first token's bias decides
    context[logits] = np.log(scores / (1 - scores))
    (op,) = g.ops
    op.reference(context)
    chosen, weights = (context[out] for out in op.outputs)
    assert chosen.tolist() == [[3, 2], [2, 3]]
    expected = np.array([[0.65, 0.2], [0.9, 0.35]])
    np.testing.assert_allclose(weights, 3 * expected / expected.sum(axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weights_inputs", [False, True])
def test_sparse_mixing_and_weighted_inputs(isa: str, weights_inputs: bool) -> None:
    routing = Routing(EXPERTS, 2, "sparsemixer", factor=1.5)
    compare(mixture(routing=routing, weights_inputs=weights_inputs), one_sequence(33), isa, 1e-5)


def route_once(logits: list[list[float]], routing: Routing) -> tuple[Array, Array]:
    """The experts and their weights by the reference."""
    g = Tracer({})
    x = g.buffer(routing.experts)
    g.add(Route(x, (g.buffer(routing.used, type=GGMLType.I32), g.buffer(routing.used)), routing))
    context = Context(Program(tuple(g.ops), {}, (0, 16, 32), {Rows.TOKEN: 48}, x), 1, 0, np.float64, "f32", "f32")
    context[x] = np.array(logits)
    (op,) = g.ops
    op.reference(context)
    chosen, weights = op.outputs
    return context[chosen], context[weights]


def test_the_reference_mixes_sparsely_as_written() -> None:
    """Logits within 2 % of the best count in its softmax: of the larger of both, so that negative ones spread too."""
    chosen, weights = route_once([[5.0, 4.95, 4.0, 4.85], [-1.0, -1.01, -2.0, -1.03]], Routing(4, 2, "sparsemixer"))
    assert chosen.tolist() == [[0, 1], [0, 1]]
    wanted = [[1 / (1 + np.exp(-0.05)), 1.0], [1 / (1 + np.exp(-0.01)), 1 / (1 + np.exp(-0.02))]]
    # 4.85 is 3 % less than 5 and 2.02 % less than 4.95; -1.03 is 2.9 % less than -1 and 1.9 % less than -1.01.
    np.testing.assert_allclose(weights, wanted, rtol=1e-6)


def test_a_group_can_count_as_its_best_expert() -> None:
    logits = [[3.0, 0.0, 2.9, 2.8]]  # two groups: the first has the best expert, the second the best two
    for counted, wanted in ((1, [0, 1]), (2, [2, 3])):
        chosen, _ = route_once(logits, Routing(4, 2, groups=2, groups_used=1, counted=counted))
        assert chosen.tolist() == [wanted]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 33, 64])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_oai"])
def test_batches_of_all_sizes(isa: str, tokens: int, activation: Activation) -> None:
    """With biases, a shared part, widths that fill no vector, and few experts, so that one has many panels."""
    made = mixture(routing=Routing(4, 2, normalized=True), width=72, hidden=90, activation=activation, biases=True)
    compare(made, one_sequence(tokens), isa, 2e-6)
    if tokens == 33:
        compare(mixture(biases=True, shared=True), one_sequence(tokens), isa, 2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", [GGMLType.Q4_K, GGMLType.MXFP4, GGMLType.Q8_0, GGMLType.BF16])
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_formats(isa: str, type: GGMLType, tokens: int) -> None:
    """In float32 almost the reference's; in int8 (14 bits for floats) as near as a linear's activations allow."""
    made = mixture(type, width=256, hidden=256, activation="gelu_tanh")
    compare(made, one_sequence(tokens), isa, 1e-5)
    cpu = CpuExecutor(made, 4, max_batch=64, threads=2, instruction_set=isa)
    expected = run_all(ReferenceExecutor(made, 4, dtype=np.float64), one_sequence(tokens))
    error = np.sqrt(np.square(run_all(cpu, one_sequence(tokens)) - expected).mean())
    assert error < 0.02 * np.sqrt(np.square(expected).mean())


def outputs(made: Program, tokens: int, **options: Any) -> Array:
    settings: dict[str, Any] = {"max_batch": 64, "threads": 2} | options
    return run_all(CpuExecutor(made, 4, **settings), one_sequence(tokens))


@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_threads_change_nothing(precision: str) -> None:
    made = mixture(GGMLType.Q4_K, width=256, hidden=256)
    one, many = (CpuExecutor(made, 4, max_batch=64, threads=n, precision=precision) for n in (1, 5))  # type: ignore
    for i in range(40):
        batch = one_sequence(1 + i * 7 % 40)
        assert np.array_equal(run_all(one, batch), run_all(many, batch))


@pytest.mark.parametrize("type", [GGMLType.Q4_K, GGMLType.F16])
def test_deterministic_rows_do_not_depend_on_the_batch(type: GGMLType) -> None:
    made = mixture(type, width=256, hidden=256)
    whole = outputs(made, 40, deterministic=True)
    for tokens in (1, 2, 3, 20):
        assert np.array_equal(outputs(made, tokens, deterministic=True), whole[:tokens])


def test_an_expert_of_all_tokens_and_experts_of_none() -> None:
    """All tokens choose the same experts, in batches of one and of several panels."""
    made = mixture(choice_bias=True)
    bias = made.weights["choice"].data.view(np.float32)
    bias[...] = 0
    bias[0, [2, 7, 11]] = 100
    for tokens in (1, 40):
        compare(made, one_sequence(tokens), ISAS[0], 1e-5)


def test_float_weights_of_an_expert_of_many_tokens_beside_others_of_few() -> None:
    """Panels of 14 bits and rows of floats would share their memory."""
    made = mixture(GGMLType.F16, width=256, hidden=256, choice_bias=True)
    bias = made.weights["choice"].data.view(np.float32)
    bias[...] = 0
    bias[0, 2] = 100
    for tokens in (40, 60):
        expected = run_all(ReferenceExecutor(made, 4, dtype=np.float64), one_sequence(tokens))
        error = np.sqrt(np.square(outputs(made, tokens) - expected).mean())
        assert error < 0.02 * np.sqrt(np.square(expected).mean())


def test_scores_that_are_no_numbers_still_choose_experts() -> None:
    made = mixture()
    made.weights["router.weight"].data.view(np.float32)[3] = np.nan
    for tokens in (1, 2, 20):
        assert np.isnan(outputs(made, tokens)).all()


def test_the_activation_is_fused() -> None:
    made = mixture()
    fused = fuse(made)
    (first, second) = (group for group in fused if isinstance(group.op, ExpertLinear))
    assert first.activation is not None
    assert second.activation is None
    assert [op for group in fused for op in group.ops] == list(made.ops)


@pytest.mark.parametrize("kind", ["reference", *ISAS])
def test_observers_count_each_expert(kind: str) -> None:
    """The sums of an expert's inputs over its own tokens, for all experts, and how many tokens it saw."""
    made = observe_linears(mixture(), lambda name: True)
    executor: Any = (
        ReferenceExecutor(made, 4)
        if kind == "reference"
        else CpuExecutor(made, 4, max_batch=64, threads=2, precision="f32", instruction_set=kind)
    )
    sums = {name: np.zeros((EXPERTS, columns)) for name, columns in zip(NAMES, (WIDTH, WIDTH, HIDDEN), strict=True)}
    rows = np.zeros(EXPERTS, np.int64)
    weights = {name: weight.data.view(np.float32).reshape(weight.shape) for name, weight in made.weights.items()}
    for tokens in (1, 30):
        batch = one_sequence(tokens)
        executor.run(batch)
        x = weights["embed"][batch.tokens].astype(np.float64)
        for row in x:
            for expert in np.argsort(-(weights["router.weight"] @ row))[:USED]:
                gate, up = (weights[name][expert] @ row for name in NAMES[:2])
                for name, values in zip(NAMES, (row, row, gate / (1 + np.exp(-gate)) * up), strict=True):
                    sums[name][expert] += values**2
                rows[expert] += 1
    seen = executor.take_observations()
    assert rows.min() < rows.max()
    assert rows.sum() == 31 * USED
    for name in NAMES:
        np.testing.assert_array_equal(seen[name].rows, rows)
        np.testing.assert_allclose(seen[name].sums, sums[name], rtol=1e-4, atol=1e-6)
    assert seen["router.weight"].rows.tolist() == [31]


def test_costs_are_those_of_the_experts_that_are_read() -> None:
    made = mixture(GGMLType.Q8_0, Routing(8, 2))
    (first, second) = (op for op in made.ops if isinstance(op, ExpertLinear))
    bytes_of_one = made.weights[NAMES[0]].data.nbytes / 8
    calls = Calls({Rows.TOKEN: [1]}, [], GGMLType.F16, GGMLType.F16)
    assert first.cost(calls, made.weights) == Cost(2 * 2 * bytes_of_one, 2 * 2 * WIDTH * HIDDEN)
    calls = Calls({Rows.TOKEN: [2]}, [], GGMLType.F16, GGMLType.F16)
    # The second token has one more expert and a half: six of eight are unread before it, of which it chooses a quarter.
    assert second.cost(calls, made.weights) == Cost(3.5 * bytes_of_one, 4 * WIDTH * HIDDEN)
