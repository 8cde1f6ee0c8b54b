"""Turns: one thread at a time, first come first served, and nothing that interrupts leaves it locked."""

import os
import signal
import time
from collections.abc import Iterator
from threading import Event, Thread, get_ident

import pytest

from lltool.engine.turns import Turns


@pytest.fixture
def held() -> Iterator[tuple[Turns, Event]]:
    """Turns of which another thread has one until the event is set."""
    turns, has_it, let_go = Turns(), Event(), Event()

    def hold() -> None:
        with turns.wait():
            has_it.set()
            let_go.wait(10)

    thread = Thread(target=hold)
    thread.start()
    has_it.wait(10)
    yield turns, let_go
    let_go.set()
    thread.join()


def test_nobody_takes_turn_after_turn_while_others_wait(held: tuple[Turns, Event]) -> None:
    turns, let_go = held
    order: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            with turns.wait():
                order.append(number)
                time.sleep(0.005)  # the others are asleep when this one asks again

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert order == []
    let_go.set()
    for thread in threads:
        thread.join(30)
    # A plain lock gives one thread all its turns in a row. A busy machine may start a thread late.
    waiting = order[8:40]
    assert all(set(waiting[start : start + 8]) == {0, 1, 2, 3} for start in range(len(waiting) - 8))


def test_a_finalizer_can_ask_while_its_thread_waits() -> None:
    turns = Turns()
    turns._turn._waiting.add(get_ident())  # as in the midst of entering
    with turns.wait():
        assert turns._turn._is_owned()
    assert not turns._turn._is_owned()


def test_who_has_a_turn_can_ask_again_while_others_wait(held: tuple[Turns, Event]) -> None:
    turns, let_go = held
    done: list[str] = []

    def nest() -> None:
        with turns.wait():
            time.sleep(0.05)
            with turns.wait():
                done.append("inner")
        done.append("outer")

    threads = [Thread(target=nest) for _ in range(2)]
    for thread in threads:
        thread.start()
    let_go.set()
    for thread in threads:
        thread.join(10)
    assert sorted(done) == ["inner", "inner", "outer", "outer"]


@pytest.mark.parametrize("waiting", [1, 3])
def test_an_interrupt_while_waiting_leaves_nothing_locked(held: tuple[Turns, Event], waiting: int) -> None:
    turns, let_go = held
    done: list[int] = []

    def work() -> None:
        with turns.wait():
            done.append(1)

    threads = [Thread(target=work) for _ in range(waiting - 1)]
    for thread in threads:
        thread.start()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt), turns.wait():
            pass
    finally:
        signal.signal(signal.SIGALRM, before)
    let_go.set()
    for thread in threads:
        thread.join(10)
    with turns.wait():
        assert len(done) == waiting - 1


def test_a_forked_child_does_not_wait_for_its_parents_threads(held: tuple[Turns, Event]) -> None:
    turns, _ = held
    child = os.fork()
    if child == 0:
        with turns.wait():
            os._exit(0)
    deadline = time.monotonic() + 5
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if found == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert found == (child, 0)
