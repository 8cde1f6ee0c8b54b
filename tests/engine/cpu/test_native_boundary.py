"""Whatever the native executor is given, it raises an exception at worst; `make sanitize` runs this too."""

import gc
import weakref
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lltool.engine.cpu import _native
from tests.engine.cpu.native_calls import (
    LOGITS,
    SETTINGS,
    Made,
    build,
    call,
    function,
    int32,
    made,
    make,
    product,
    rms,
    weight,
    whole_program,
)
from tests.odd_arrays import as_odd, odd_arrays

REFUSED = (ValueError, TypeError, RuntimeError, MemoryError, OverflowError)


@pytest.mark.parametrize("isa", _native.available_isas())
def test_the_calls_are_right_as_they_stand(isa: str) -> None:
    executor = make(isa=isa)
    for step in whole_program():
        result = call(executor, *step)
    assert result.shape == (1, 40)
    assert np.isfinite(result).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decode": []}, "at least one thread"),
        ({"batch": [[]] * 4097}, "at most 4096 threads"),
        ({"decode": [[-1]]}, "processors have numbers"),
        ({"poll": 101}, "poll is 0 to 100"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": 2**31 - 1}, "max_batch"),
        ({"head_rows": 5}, "head_rows is 1 to max_batch"),
        ({"arena_width": -1}, "at least 1"),
        ({"arena_width": 2**61}, "more than any memory holds"),
        ({"vocabulary": 2**62}, "more than any memory holds"),
        ({"pages": 2**31}, "32 bits"),
        ({"slots": 2**31}, "32 bits"),
        ({"slots": -1}, "32 bits"),
        ({"k_type": 3}, "k_type and v_type"),
        ({"v_type": 2**31 - 1}, "k_type and v_type"),
        ({"isa": "mmx"}, "'mmx' is not one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


X, FREE = (0, 64), (64, 64)
F32 = np.zeros((64, 256), np.uint8)


VECTOR, ROWS = np.ones(64, np.float32), np.zeros((1, 64), np.float32)


def mixing(**changes: Any) -> dict[str, Any]:
    inputs = dict.fromkeys(("r", "w", "k", "v", "a", "first", "mix"), X)
    weights = dict.fromkeys(("k_k", "k_a", "r_k"), VECTOR)
    return {**inputs, **weights, "out": FREE, "bonus": (128, 64), "heads": 4} | changes


def embedding(data: Any = F32, **changes: Any) -> dict[str, Any]:
    return {"out": FREE, "type": 0, "data": data, "scale": 1.0} | changes


def delta(**changes: Any) -> dict[str, Any]:
    """A call that would be right if `beta` and `alpha` had been made."""
    sizes = {"key_heads": 1, "key_dim": 24, "tiled": False, "rate": VECTOR[:1], "bias": VECTOR[:1]}
    return {"qkv": X, "beta": (128, 1), "alpha": (128, 1), "out": (64, 16), **sizes} | changes


@pytest.mark.parametrize(
    ("name", "named", "message"),
    [
        (
            "embed",
            embedding(np.zeros((1, 1), np.uint8), type=2),
            "64 weights in 1 bytes; type 2 has 18 bytes for each 32",
        ),
        ("embed", embedding(np.zeros((1, 36), np.uint8), out=(64, 48), type=2), "48 weights in 36 bytes"),
        ("embed", embedding(type=4), "no native format of type 4"),
        ("embed", embedding(scale=np.nan), "infinite, NaN"),
        ("embed", embedding(F32[:0]), "without weights"),
        ("function", {"function": rms(64), "x": X, "out": (1000, 64)}, "does not lie in the arena"),
        ("function", {"function": rms(64), "x": X, "out": (2**62, 64)}, "does not lie in the arena"),
        ("function", {"function": rms(64), "x": X, "out": (32, 64)}, "overlaps another in part"),
        ("function", {"function": rms(40), "x": LOGITS, "out": (64, 40)}, "only the head writes logits"),
        ("function", {"function": rms(64), "x": FREE, "out": X}, "none before it has made"),
        ("function", {"function": rms(64, np.nan), "x": X, "out": X}, "infinite, NaN"),
        ("function", {"function": rms(64, -1.0), "x": X, "out": X}, "the factor is too small"),
        (
            "rope",
            {"x": X, "out": X, "head_dim": 32, "frequencies": [np.inf], "magnitude": 1.0, "interleaved": True},
            "infinite, NaN",
        ),
        ("linear", {"x": X, "groups": []}, "no weight"),
        ("linear", {"x": X, "groups": [[]]}, "without a weight"),
        ("linear", {"x": X, "groups": [[product(FREE, 0, F32[:, :255].copy())]]}, "64 weights in 255 bytes"),
        ("linear", {"x": X, "groups": [[product(FREE, 9, weight(64, 72))]]}, "no native format of type 9"),
        ("linear", {"x": X, "groups": [[product(X, 0, F32)]]}, "in the place of an input"),
        ("linear", {"x": X, "groups": [[product(FREE, 0, F32)], [product(FREE, 0, F32)]]}, "of another output"),
        ("function", {"function": function("add"), "x": X, "out": FREE, "group": 0}, "without a linear just before"),
        ("function", {"function": function("sum"), "x": X, "out": FREE}, "no function 'sum'"),
        ("select", {"x": X, "out": X}, "select: shapes do not agree"),
        ("split", {"x": X, "outs": [(64, 32), (96, 30)], "groups": 2}, "split: shapes do not agree"),
        ("split", {"x": X, "outs": [(64, 31), (96, 33)], "groups": 2}, "split: shapes do not agree"),
        ("split", {"x": X, "outs": [(64, 32), (64, 32)], "groups": 2}, "two parts in one place"),
        ("split", {"x": X, "outs": [(64, 2**62), (64, 32)], "groups": 2}, "split: shapes do not agree"),
        ("split", {"x": X, "outs": [X], "groups": 1}, "split: shapes do not agree"),
        ("split", {"x": X, "outs": [], "groups": 0}, "no part"),
        ("gated_delta", delta(out=(64, 10)), "gated_delta: shapes do not agree"),
        ("gated_delta", delta(key_dim=2**30), "no such heads"),
        ("gated_delta", delta(key_heads=2**31 - 1), "gated_delta: shapes do not agree"),
        ("gated_delta", delta(rate=VECTOR[:3]), "gated_delta: shapes do not agree"),
        ("gated_delta", delta(bias=VECTOR[:2]), "gated_delta: shapes do not agree"),
        ("gated_delta", delta(beta=(0, 0)), "gated_delta: shapes do not agree"),
        ("gated_delta", delta(alpha=(64, 2)), "gated_delta: shapes do not agree"),
        ("gated_delta", delta(alpha=(64, 1)), "none before it has made"),
        ("token_shift", {"x": X, "outs": [], "weight": ROWS}, "token_shift: shapes do not agree"),
        ("token_shift", {"x": X, "outs": [X], "weight": ROWS}, "an output in the place of the input"),
        ("token_shift", {"x": X, "outs": [(64, 32)], "weight": ROWS}, "token_shift: shapes do not agree"),
        ("token_shift", {"x": X, "outs": [FREE] * 9, "weight": ROWS}, "token_shift: shapes do not agree"),
        ("token_shift", {"x": FREE, "outs": [(128, 64)], "weight": ROWS}, "none before it has made"),
        ("time_mix", mixing(heads=0), "no such heads"),
        ("time_mix", mixing(heads=5), "no such heads"),
        ("time_mix", mixing(mix=None), "with what mixes them"),
        ("time_mix", mixing(bonus=FREE), "two outputs in one place"),
        ("time_mix", mixing(out=X), "an output in the place of an input"),
        ("time_mix", mixing(k=(0, 32)), "time_mix: shapes do not agree"),
        ("time_mix", mixing(k_a=VECTOR[:3]), "time_mix: shapes do not agree"),
        ("time_mix", mixing(first=(192, 64)), "none before it has made"),
        ("observe", {"x": FREE}, "none before it has made"),
    ],
)
def test_operations_that_do_not_fit_are_refused(name: str, named: dict[str, Any], message: str) -> None:
    executor = build("embed")
    with pytest.raises(ValueError, match=message):
        call(executor, name, [], named)


def test_arguments_of_operations_are_named() -> None:
    """By position, two sizes or two places could be mistaken for each other."""
    for name, _, named in whole_program():
        if named:
            with pytest.raises(TypeError, match="incompatible function arguments"):
                call(make(), name, list(named.values()), {})


def test_columns_that_threads_would_race_for_are_refused() -> None:
    """The rules of engine/cpu/fuse.py hold here too, whoever makes the plan."""
    a, b, c = (64, 64), (128, 64), (192, 64)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"x": a, "out": X}, "what another one uses"),  # what the linear reads
        ({"x": a, "out": b}, "what another one uses"),  # what group 1 writes
        ({"x": a, "y": b, "out": c}, "what another one uses"),
        ({"x": a, "out": a, "group": 2}, "no such group"),
        ({"x": a, "out": (192, 32)}, "do not agree"),
    ]
    for named, message in cases:
        executor = build("embed")
        call(executor, "linear", [], {"x": X, "groups": [[product(a, 0, F32)], [product(b, 0, F32)]]})
        with pytest.raises(ValueError, match=message):
            call(executor, "function", [], {"function": function("add"), "group": 0} | named)


def test_the_head_is_not_the_body() -> None:
    executor = build("select")
    selected, other = (256, 64), (320, 64)
    with pytest.raises(ValueError, match="none before it has made"):
        executor.observe(x=(0, 64))  # rows of tokens, of which there may be more than of the head
    rope = {"head_dim": 32, "frequencies": [1.0], "magnitude": 1.0, "interleaved": True}
    heads = {"layer": 1, "heads": 2, "kv_heads": 2, "head_dim": 32, "scale": 1.0}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("select", {"x": selected, "out": (0, 64)}),
        ("embed", embedding(out=(0, 64))),
        ("rope", {"x": selected, "out": selected, **rope}),
        ("attention", {"q": selected, "k": selected, "v": selected, "out": (0, 64), **heads}),
    ]
    for name, named in calls:
        with pytest.raises(ValueError, match=r"the head (begins once|has no)"):
            call(executor, name, [], named)
    with pytest.raises(ValueError, match="writes into what it begins with"):
        call(executor, "function", [], {"function": function("add"), "x": selected, "out": other})
    with pytest.raises(ValueError, match="no operation has made logits"):
        executor.finish()


@pytest.mark.parametrize("name", ["run", "logits", "score", "compare", "copy_page", "copy_slot", "take_times"])
def test_nothing_runs_before_finish(name: str) -> None:
    executor = build("function")
    step = next(step for step in whole_program() if step[0] == name)
    with pytest.raises(RuntimeError, match="not finished: nothing can run"):
        call(executor, *step)


def test_nothing_is_added_after_finish() -> None:
    executor = build()
    for step in whole_program()[:31]:
        with pytest.raises(RuntimeError, match="is finished: no operation can be added"):
            call(executor, *step)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("logits", [0, 3]),  # more than head_rows
        ("logits", [-1, 1]),
        ("logits", [2, 4]),
        ("logits", [-(2**63), 2**63 - 1]),
        ("score", [2**63 - 1, int32(1, 2), np.empty(2)]),
        ("score", [-1, int32(1), np.empty(1)]),
        ("score", [2, int32(1, 2), np.empty(2)]),
        ("score", [0, int32(40), np.empty(1)]),
        ("compare", [2**63 - 1, np.ones((1, 40), np.float32), int32(0), np.empty((1, 7))]),
        ("compare", [0, np.ones((1, 40), np.float32), int32(-1), np.empty((1, 7))]),
        ("copy_page", [0, 2]),
        ("copy_page", [-(2**63), 0]),
        ("copy_slot", [0, 3]),
        ("copy_slot", [-(2**63), 0]),
        ("take_sums", [2, np.empty((1, 64)), np.empty(1, np.int64)]),
        ("take_sums", [1, np.empty((1, 128)), np.empty(1, np.int64)]),
        ("take_sums", [1, np.empty((4, 32)), np.empty(1, np.int64)]),
        (
            "run",
            [int32(0, 1), int32(5, 5), int32(0, 0), np.array([[0]], np.int32), int32(), int32(0)],
        ),  # one place for two
        ("run", [int32(0, 1), int32(5, 5), int32(0, 1), np.array([[0], [0]], np.int32), int32(), int32(0, 1)]),
        ("run", [int32(50), int32(0), int32(0), np.array([[0]], np.int32), int32(), int32(0)]),
        ("run", [int32(1), int32(0), int32(0), np.array([[0]], np.int32), int32(), int32(3)]),  # no such slot
        ("run", [int32(1), int32(0), int32(0), np.array([[0]], np.int32), int32(), int32(-1)]),
        ("run", [int32(1), int32(0), int32(0), np.array([[0]], np.int32), int32(), int32()]),
        ("run", [int32(0, 1), int32(5, 5), int32(0, 1), np.array([[0], [1]], np.int32), int32(), int32(1, 1)]),
        ("run", [int32(0, 1), int32(5, 4), int32(0, 0), np.array([[0]], np.int32), int32(), int32(0)]),  # backwards
        ("run", [int32(0, 1), int32(3, 5), int32(0, 0), np.array([[0]], np.int32), int32(), int32(0)]),  # a gap
        ("run", [int32(0, 1, 2), int32(0, 0, 1), int32(0, 1, 0), np.array([[0], [1]], np.int32), int32(), int32(0, 1)]),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, arguments: list[Any]) -> None:
    executor = build("run")
    with pytest.raises(ValueError, match=r"."):
        getattr(executor, name)(*arguments)
    assert executor.logits(0, 2).shape == (2, 40)


def test_there_are_no_logits_before_a_run() -> None:
    for name, arguments in (("logits", [0, 1]), ("score", [0, int32(1), np.empty(1)])):
        with pytest.raises(ValueError, match="no such"):
            getattr(build(), name)(*arguments)


@pytest.mark.parametrize(
    "arguments", [("scalar", 0, 0.0), ("scalar", 5000, 0.0), ("scalar", 1, np.inf), ("mmx", 1, 0.0)]
)
def test_probes_check_their_arguments(arguments: tuple[str, int, float]) -> None:
    isa, threads, seconds = arguments
    with pytest.raises(ValueError, match=r"threads must|seconds must|not one of"):
        _native.probe_multiply(isa, threads, "int8", seconds)
    with pytest.raises(ValueError, match=r"threads must|seconds must|not one of"):
        _native.probe_read(isa, threads, np.zeros(8, np.uint8), seconds)


def test_weights_live_as_long_as_the_executor_and_no_longer() -> None:
    executor, data = make(), np.ones((50, 256), np.uint8)
    alive = weakref.ref(data)
    executor.embed(out=X, type=0, data=data, scale=1.0)
    gc.disable()
    try:
        del data
        assert alive() is not None
        del executor
        assert alive() is None  # at once: no cycle waits for the collector
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["other type", "strided", "other order", "fewer dimensions", "list"])
def test_arrays_are_not_converted(kind: str) -> None:
    """A converted copy of weights would be gone when they are read."""
    with pytest.raises(TypeError, match="incompatible function arguments"):
        make().embed(out=X, type=0, data=as_odd(np.ones((50, 256), np.uint8), kind), scale=1.0)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        made(product(FREE, 0, as_odd(F32, kind)))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        made(product(FREE, 0, F32, as_odd(np.ones(64, np.float32), kind)))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.Function(name="rms_norm", vector=as_odd(np.ones(64, np.float32), kind), unit=64)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        build("run").compare(0, as_odd(np.ones((2, 40), np.float32), kind), int32(0, 39), np.empty((2, 7)))


def test_an_executor_is_made_once() -> None:
    executor = build("run")
    with pytest.warns(RuntimeWarning, match="already-initialized"), pytest.raises(TypeError):
        executor.__init__(**SETTINGS)  # type: ignore[misc]
    assert executor.logits(0, 1).shape == (1, 40)
    with pytest.warns(RuntimeWarning, match="uninitialized"), pytest.raises(TypeError):
        _native.Executor.__new__(_native.Executor).operations()


integers = st.sampled_from(
    [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 8, 30, 31, 32, 33, 40, 63, 64, 65, 2**31 - 1, 2**62]
)
reals = st.sampled_from([0.0, 1.0, -1.0, 1e-45, 3e38, 1e39, 1e308, float("inf"), float("nan")])
anything = st.sampled_from([None, "", "add", b"", (), [], {}, (0,), [[]], 2**70, 1.5, True])


def odd_value(value: Any) -> st.SearchStrategy[Any]:
    """Something in the place of `value`, mostly of its kind."""
    near: st.SearchStrategy[Any] = anything
    if isinstance(value, np.ndarray):
        near = odd_arrays(value)
    elif isinstance(value, bool):
        near = st.booleans()
    elif isinstance(value, int):
        near = integers | st.sampled_from([value - 1, value + 1, 2 * value])
    elif isinstance(value, float):
        near = reals
    elif isinstance(value, Made):
        near = odd_value(value.named).map(lambda named: replace(value, named=named))
    elif isinstance(value, dict) and value:
        near = st.sampled_from(sorted(value)).flatmap(
            lambda key: odd_value(value[key]).map(lambda odd: value | {key: odd})
        )
    elif isinstance(value, list | tuple) and value:
        place = st.integers(0, len(value) - 1)
        near = place.flatmap(lambda at: odd_value(value[at]).map(lambda odd: replaced(value, at, odd)))
    return near | anything if not isinstance(value, list | tuple | dict) else near


def replaced(items: Any, at: int, item: Any) -> Any:
    return type(items)([*items[:at], item, *items[at + 1 :]])


@pytest.mark.parametrize("isa", _native.available_isas())
@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data())
def test_any_calls(isa: str, data: st.DataObject) -> None:
    """Right calls in which some arguments are odd, some calls are missing, and some come twice or elsewhere."""
    draw = data.draw
    changes: dict[str, Any] = {"isa": isa, "int8": draw(st.booleans()), "deterministic": draw(st.booleans())}
    if draw(st.integers(0, 4)) == 0:
        name = draw(st.sampled_from(sorted(SETTINGS)))
        changes[name] = draw(odd_value(SETTINGS[name]))
    calls = whole_program()
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(calls) - 1))
        name, arguments, named = calls[at]
        match draw(st.sampled_from(["argument", "argument", "argument", "missing", "twice", "elsewhere"])):
            case "argument" if arguments:
                calls[at] = (name, draw(odd_value(arguments)), named)
            case "argument" if named:
                calls[at] = (name, arguments, draw(odd_value(named)))
            case "missing":
                del calls[at]
            case "twice":
                calls.insert(at, calls[at])
            case "elsewhere":
                calls.insert(draw(st.integers(0, len(calls) - 1)), calls[at])
    with suppress(*REFUSED):
        executor = make(**changes)
        for step in calls:
            with suppress(*REFUSED):
                call(executor, *step)
                continue
            if step[0] == "finish":
                return
