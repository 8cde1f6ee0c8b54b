"""Which threads take part in a run, and where."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.cpu.threads import Team, Threads, available_cpus
from lltool.engine.operations.elementwise import scale
from lltool.engine.operations.embed import embed
from lltool.engine.operations.linear import linear
from lltool.engine.operations.select import select
from lltool.engine.program import Program, Tracer, Weight
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_cpu import VOCAB, f32_weight, one_sequence, random_weight, run_all

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")

TASKS = Path("/proc/self/task")


@pytest.fixture(scope="module")
def program() -> Program:
    rng = np.random.default_rng(0)
    weights: list[Weight] = [
        f32_weight("embed", rng.standard_normal((VOCAB, 256)).astype(np.float32)),
        random_weight(rng, "w.weight", GGMLType.Q4_K, 4096, 256),
    ]
    g = Tracer({w.name: w for w in weights})
    (x,) = linear(g, select(g, embed(g, "embed", VOCAB, 256)), ("w.weight",), (4096,))
    scale(g, x, 1.0)
    return g.finish()


def make(program: Program, threads: Threads) -> CpuExecutor:
    return CpuExecutor(program, 1, max_batch=32, threads=threads)


@contextmanager
def new_threads() -> Iterator[list[int]]:
    """Filled, in the block, by those that are started in it."""
    before = {int(task.name) for task in TASKS.iterdir()}
    found: list[int] = []
    yield found
    found += sorted({int(task.name) for task in TASKS.iterdir()} - before)


def processor_time(thread: int) -> int:
    """Nanoseconds that a thread has run."""
    return int((TASKS / str(thread) / "schedstat").read_text().split()[0])


def await_idle(threads: list[int]) -> None:
    deadline = monotonic() + 10
    while any(state(thread) == "R" for thread in threads) and monotonic() < deadline:
        sleep(0.01)


def state(thread: int) -> str:
    return (TASKS / str(thread) / "stat").read_text().rpartition(")")[2].split()[0]


def test_one_token_leaves_the_threads_of_batches_asleep(program: Program) -> None:
    with new_threads() as started:
        executor = make(program, Threads(Team(1), Team(3), poll=0))
    assert len(started) == 2
    run_all(executor, one_sequence(16))
    await_idle(started)
    before = [processor_time(thread) for thread in started]
    for _ in range(200):
        run_all(executor, one_sequence(1))
    assert [processor_time(thread) for thread in started] == before
    for _ in range(200):
        run_all(executor, one_sequence(16))
    assert all(now > then for now, then in zip(map(processor_time, started), before, strict=True))


@pytest.mark.parametrize(
    "threads",
    [Threads(Team(1), Team(3)), Threads(Team(3), Team(1)), Threads(Team(2), Team(2), poll=0), Threads.of(1)],
    ids=["1-3", "3-1", "sleepy", "alone"],
)
def test_teams_give_the_same_numbers(program: Program, threads: Threads) -> None:
    expected = [run_all(make(program, Threads.of(2)), one_sequence(tokens)) for tokens in (1, 5, 32)]
    executor = make(program, threads)
    for _ in range(20):
        found: list[NDArray[np.float32]] = [run_all(executor, one_sequence(tokens)) for tokens in (1, 5, 32)]
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(len(available_cpus()) < 2, reason="needs two processors")
def test_threads_run_on_their_processors_and_the_callers_is_free_again(program: Program) -> None:
    first, second, *_ = sorted(available_cpus())
    free = os.sched_getaffinity(0)
    decode, batch = Team(2, (first, second), strict=True), Team(2, (first,))
    with new_threads() as started:
        executor = make(program, Threads(decode, batch))
    (worker,) = started
    places = []
    for tokens in (1, 32):
        deadline = monotonic() + 30
        while os.sched_getaffinity(worker) == (free if tokens == 1 else {second}) and monotonic() < deadline:
            run_all(executor, one_sequence(tokens))  # a thread that comes too late is not moved
            sleep(0.002)  # a thread that slept is preferred when it wakes
        places.append(os.sched_getaffinity(worker))
        assert os.sched_getaffinity(0) == free
    assert places == [{second}, {first}]


def test_executors_share_their_threads_and_close_in_any_order(program: Program) -> None:
    alone = [run_all(make(program, Threads.of(1)), one_sequence(tokens)) for tokens in (1, 32)]
    for closed_first in (0, 1):
        with new_threads() as started:
            executors = [make(program, Threads.of(2)), make(program, Threads(Team(1), Team(2)))]
        assert len(started) == 1
        for _ in range(20):
            for executor in executors:
                for tokens, expected in zip((1, 32), alone, strict=True):
                    np.testing.assert_array_equal(run_all(executor, one_sequence(tokens)), expected)
        del executors[closed_first], executor
        assert (TASKS / str(started[0])).exists()
        np.testing.assert_array_equal(run_all(executors[0], one_sequence(32)), alone[1])
        with new_threads() as more:
            executors.append(make(program, Threads.of(4)))
        assert len(more) == 2
        np.testing.assert_array_equal(run_all(executors[1], one_sequence(32)), alone[1])
        executors.clear()
        deadline = monotonic() + 5
        while any((TASKS / str(thread)).exists() for thread in (*started, *more)) and monotonic() < deadline:
            sleep(0.001)  # the system may list a thread for a moment after it has ended
        assert not any((TASKS / str(thread)).exists() for thread in (*started, *more))


def test_two_threads_use_two_executors_at_once(program: Program) -> None:
    executors = [make(program, Threads.of(2)), make(program, Threads(Team(3), Team(2), poll=0))]
    sizes = (1, 32)
    expected = [run_all(executors[0], one_sequence(tokens)) for tokens in sizes]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(100):
            for tokens, wanted in zip(sizes, expected, strict=True):
                if not np.array_equal(run_all(executors[number], one_sequence(tokens)), wanted):
                    wrong.append(number)

    workers = [Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert (wrong, [worker.is_alive() for worker in workers]) == ([], [False, False])
