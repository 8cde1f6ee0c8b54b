"""Many clients of one server at once: each sends a request when the answer to the last one has come."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from time import perf_counter
from typing import Any

from lltool.eval.bench.through.client import Answer, Client, Server
from lltool.eval.bench.through.process import ServerProcess

Body = Mapping[str, Any]


@dataclass
class LoadRun:
    """The answers to all requests of a run, how long they took together, and the processor time of the server."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    processor_seconds: float | None = None


def run_load(
    server: Server,
    bodies: Sequence[Body],
    clients: int,
    *,
    beside: Callable[[int], Body] | None = None,
    process: ServerProcess | None = None,
) -> LoadRun:
    """Has so many clients send the requests, in order, each the next one when it is free.

    With `beside`, one more client sends requests of its own, beside(0), beside(1), ..., until the others have had all
    their answers; those to its own do not count.
    """
    found, left, lock, is_over = LoadRun(), iter(bodies), Lock(), Event()

    def following() -> Body | None:
        with lock:
            return None if is_over.is_set() else next(left, None)

    def work() -> None:
        client = Client(server)
        while (body := following()) is not None:
            answer = client.ask(body)
            with lock:
                found.answers.append(answer)
        client.close()

    def keep_busy() -> None:
        client = Client(server)
        for body in _counted(beside, is_over):
            client.ask(body)
        client.close()

    threads = [Thread(target=work, daemon=True) for _ in range(clients)]
    other = [Thread(target=keep_busy, daemon=True)] if beside else []
    before = process.processor_seconds() if process else 0.0
    start = perf_counter()
    try:
        for thread in [*other, *threads]:
            thread.start()
        for thread in threads:
            thread.join()
        found.seconds = perf_counter() - start
    finally:
        is_over.set()
    for thread in other:
        thread.join()
    if process:
        found.processor_seconds = process.processor_seconds() - before
    return found


def _counted(make: Callable[[int], Body] | None, is_over: Event) -> Iterator[Body]:
    number = 0
    while make is not None and not is_over.is_set():
        yield make(number)
        number += 1
