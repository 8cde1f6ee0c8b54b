"""States of fixed size: a forked or truncated sequence gives the logits that evaluating its text anew gives."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.batch import PAGE
from lltool.engine.cache import Sequence
from lltool.engine.cpu.threads import Threads
from lltool.engine.executors import EXECUTORS, Setup, make_executor
from lltool.engine.model import Model
from lltool.engine.operations.attention import attend
from lltool.engine.operations.convolution import Convolution, convolution
from lltool.engine.operations.embed import embed
from lltool.engine.operations.linear import linear
from lltool.engine.operations.select import select
from lltool.engine.program import Program, Tracer, Weight
from lltool.engine.reference.context import Context
from lltool.engine.state import KeyValue, Slot, StateLayout
from lltool.gguf.ggml_types import GGMLType

VOCAB, WIDTH, CONTEXT, EVERY, MOST = 50, 32, 512, 256, 4
TAPS = 4


def make_program() -> Program:
    random = np.random.default_rng(5)

    def weight(name: str, rows: int, columns: int = WIDTH) -> Weight:
        values = (random.normal(size=(rows, columns)) / columns**0.5).astype(np.float32)
        return Weight(name, GGMLType.F32, values.shape, values.view(np.uint8))

    weights = [
        weight("embed", VOCAB),
        *(weight(f"{name}.weight", WIDTH) for name in "qkvo"),
        weight("head.weight", VOCAB),
        *(weight(f"blk.{layer}.conv.weight", WIDTH, TAPS) for layer in range(2)),
    ]
    g = Tracer({w.name: w for w in weights})
    x = embed(g, "embed", VOCAB, WIDTH)
    for layer in range(2):
        out = convolution(g, x, f"blk.{layer}.conv.weight", TAPS)
        q, k, v = linear(g, out, ["q.weight", "k.weight", "v.weight"], [WIDTH] * 3)
        y = attend(g, q, k, v, layer=layer, head_dim=8, scale=0.3, window=0, softcap=0)
        (x,) = linear(g, y, ["o.weight"], [WIDTH], residual=out)
    linear(g, select(g, x), ["head.weight"], [VOCAB])
    return g.finish()


def make_model(kind: str, sequences: int = 4) -> Model:
    program = make_program()
    setup = Setup(sequences * CONTEXT // PAGE, 100, Threads.of(1), "f32", "f32", "f32", slots=sequences * (1 + MOST))
    executor = make_executor(kind, program, setup)
    file = SimpleNamespace(path="sums.gguf", check_unchanged=lambda: None, close=lambda: None)
    config = SimpleNamespace(vocab=VOCAB, is_causal=True)
    return Model(cast(Any, file), cast(Any, config), program, executor, setup, CONTEXT)


@pytest.fixture(params=EXECUTORS)
def model(request: pytest.FixtureRequest) -> Model:
    return make_model(request.param)


TEXT = np.random.default_rng(6).integers(0, VOCAB, CONTEXT).tolist()


def logits_anew(tokens: list[int]) -> NDArray[np.float32]:
    fresh = make_model("reference", 1)
    return fresh.evaluate(fresh.new_sequence(), tokens)


def assert_same(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # float32 sums over batches of other sizes


def test_a_program_says_what_it_keeps() -> None:
    layout = StateLayout.of(make_program())
    assert layout.key_values == (KeyValue(0, 4, 8, 8), KeyValue(1, 4, 8, 8))
    assert layout.slots == tuple(Slot(f"blk.{layer}.conv.weight", (TAPS - 1, WIDTH)) for layer in range(2))
    assert (layout.token_width, layout.slot_bytes) == (2 * 2 * WIDTH, 2 * (TAPS - 1) * 4 * WIDTH)
    assert KeyValue(0, 1, 576, 512, value_is_key=True).token_width == 576


@pytest.mark.parametrize("chunks", [[300], [1, 99, 64, 136], [50] * 6])
def test_chunks_give_what_the_whole_text_gives(model: Model, chunks: list[int]) -> None:
    sequence, start = model.new_sequence(), 0
    for count in chunks:
        found = model.evaluate(sequence, TEXT[start : start + count])
        start += count
    assert_same(found, logits_anew(TEXT[:start]))


def test_a_slot_of_another_text_leaves_no_trace(model: Model) -> None:
    other = model.new_sequence()
    model.evaluate(other, TEXT[100:200])
    other.free()
    assert_same(model.evaluate(model.new_sequence(), TEXT[:5]), logits_anew(TEXT[:5]))


@pytest.mark.parametrize("length", [0, 1, 130, 255, 256, 299, 300, 350, 399, 400])
def test_a_truncated_text_continues_as_anew(model: Model, length: int) -> None:
    sequence = model.new_sequence()
    model.evaluate(sequence, TEXT[:300])  # in batches of 100: a checkpoint at 300
    model.evaluate(sequence, TEXT[300:400])
    again = sequence.truncate(length)
    assert again == length - max(kept for kept in (0, 300, 400) if kept <= length)
    assert sequence.length == length - again
    following = [*TEXT[length - again : length], 7, 8]
    assert_same(model.evaluate(sequence, following), logits_anew([*TEXT[:length], 7, 8]))


def test_a_checkpoint_on_request_needs_nothing_again(model: Model) -> None:
    sequence = model.new_sequence()
    model.evaluate(sequence, TEXT[:70])
    sequence.checkpoint()
    for rejected in ([1], [2, 3, 4], [5] * 80):
        model.evaluate(sequence, rejected)
        assert sequence.truncate(70) == 0
    assert_same(model.evaluate(sequence, [9]), logits_anew([*TEXT[:70], 9]))


def test_forks_go_their_own_ways(model: Model) -> None:
    trunk = model.new_sequence()
    model.evaluate(trunk, TEXT[:70])
    branches = [trunk, trunk.fork(), trunk.fork().fork()]
    endings = [[1, 2, 3], [4] * 65, [5]]
    logits = model.forward([(branch, ending, "last") for branch, ending in zip(branches, endings, strict=True)]).all()
    for found, ending in zip(logits, endings, strict=True):
        assert_same(found, logits_anew([*TEXT[:70], *ending]))
    for branch in branches:
        branch.free()
    assert (model.free_pages, len(trunk.pool.free_slots)) == (model.setup.pages, model.setup.slots)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_a_run_that_fails_half_way_leaves_a_right_state(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Convolution.reference

    def fail(op: Convolution, run: Context) -> None:
        compute(op, run)
        raise error

    model = make_model("reference")
    sequence = model.new_sequence()
    model.evaluate(sequence, TEXT[:300])
    model.evaluate(sequence, TEXT[300:340])
    with monkeypatch.context() as patch:
        patch.setattr(Convolution, "reference", fail)
        with pytest.raises(error):
            model.evaluate(sequence, [1, 2, 3])
    assert sequence.length == 300
    assert_same(model.evaluate(sequence, TEXT[300:341]), logits_anew(TEXT[:341]))


@pytest.mark.parametrize("end", [Sequence.free, lambda sequence: None])
def test_slots_come_back(model: Model, end: Callable[[Sequence], None]) -> None:
    for _ in range(10):
        sequence = model.new_sequence()
        model.evaluate(sequence, TEXT[:CONTEXT])
        end(sequence)
        del sequence
    assert (model.free_pages, len(model.new_sequence().pool.free_slots)) == (model.setup.pages, model.setup.slots)
