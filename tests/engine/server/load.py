"""Many clients at once, some of which go away or send nonsense: each request gets its answer or the right status.

    python -m tests.engine.server.load MODEL... --clients 32 --seconds 60 -- --parallel 8

starts a server of the models with these options on a free port, asks each question alone, and then all clients ask at
random. With several models, the clients ask for another one every `--swap` seconds, so that the server with
--models-max 1 loads and unloads them. It prints what was answered, the times, and the server's memory; it ends with 1
if an answer was wrong.
"""

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from lltool.eval.bench.machine.footprint import read_memory
from lltool.eval.bench.through.client import Answer, Client, Server

QUESTIONS = [
    "What is the capital of Japan?",
    "Write a short poem about the sea.",
    "List three primary colours.",
    "Explain why the sky is blue. " * 12,
    "Summarize: " + "The quick brown fox jumps over the lazy dog. " * 40,
    "Count from one to ten.",
]
BAD: list[tuple[bytes, int]] = [
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b'{"messages": []}', 400),
    (b'{"messages": [{"role": "user", "content": "a"}], "n": 100000}', 400),
    (b'{"messages": [{"role": "user", "content": "a"}], "temperature": -1}', 400),
    (b'{"messages": [{"role": "user", "content": "' + b"a " * 50_000 + b'"}]}', 400),
]

Question = tuple[str, str, int]  # the model, the text, and how many tokens of an answer are wanted


@dataclass
class Outcome:
    """What all clients saw; `memory` is that of the server in MiB, without the pages of files."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # seconds to the first token
    tokens: int = 0
    memory: list[int] = field(default_factory=list)


def ask(client: Client, question: Question, leave_after: int | None = None) -> Answer:
    model, text, count = question
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
    body |= {"max_tokens": count, "stream": True, "stream_options": {"include_usage": True}}
    return client.ask(body, leave_after=leave_after)


@dataclass
class Load:
    """Clients of one server; `alone` is each question's answer when nobody else asks."""

    server: Server
    models: Sequence[str]
    alone: dict[Question, str]
    start: float
    seconds: float
    swap: float
    outcome: Outcome = field(default_factory=Outcome)
    lock: Lock = field(default_factory=Lock)

    def work(self, number: int) -> None:
        choose, client = random.Random(number), Client(self.server)
        while (now := time.monotonic() - self.start) < self.seconds:
            kind, model = choose.random(), self.models[int(now / self.swap) % len(self.models)]
            question = choose.choice([each for each in self.alone if each[0] == model])
            if kind < 0.05:
                data, status = choose.choice(BAD)
                self.note_refused(data, status, client.ask(data))
            elif kind < 0.15:
                ask(client, question, leave_after=choose.randrange(1, 10))
                self.count("cancelled")
            else:
                self.note_answer(question, ask(client, question))
        client.close()

    def count(self, name: str) -> None:
        with self.lock:
            self.outcome.counts[name] += 1

    def note_refused(self, data: bytes, status: int, answer: Answer) -> None:
        self.count("malformed")
        if answer.status != status:
            self.outcome.wrong.append(f"{data[:60]!r} got {answer.status} {answer.detail}, wanted {status}")

    def note_answer(self, question: Question, answer: Answer) -> None:
        with self.lock:
            outcome, name = self.outcome, f"{question[0]}: {question[1][:40]!r}"
            if answer.status == 503:
                outcome.counts["refused, as the queue is full"] += 1
            elif not answer.is_good:
                outcome.wrong.append(f"{name}: status {answer.status} {answer.detail}")
            else:
                outcome.counts["answered"] += 1
                outcome.tokens += answer.generated_tokens
                outcome.first += answer.pieces[:1]
                if answer.text != self.alone[question]:
                    outcome.wrong.append(f"{name}: {answer.text[:200]!r}, alone {self.alone[question][:200]!r}")


def drive(
    url: str, process: int, clients: int, seconds: float, counts: Sequence[int], swap: float | None = None
) -> Outcome:
    """Asks all questions alone and then has the clients ask; prints and returns what they saw."""
    server = Server.parse(url)
    client = Client(server)
    models = [str(each["id"]) for each in client.get("/v1/models")["data"]]
    questions = [(model, text, count) for model in models for text in QUESTIONS for count in counts]
    alone = {}
    for question in questions:
        answer = ask(client, question)
        assert answer.is_good, answer
        alone[question] = answer.text
    client.close()
    load = Load(server, models, alone, time.monotonic(), seconds, swap or seconds)
    threads = [Thread(target=load.work, args=(number,), daemon=True) for number in range(clients)]
    memory = load.outcome.memory
    memory.append(resident(process))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(max(seconds / 8, 0.05))
        memory.append(resident(process))
    elapsed, outcome = time.monotonic() - load.start, load.outcome
    first = sorted(outcome.first)
    print(dict(outcome.counts), f"{len(outcome.wrong)} wrong, {outcome.tokens / elapsed:.1f} tokens/s")
    if first:
        print(f"first token: median {first[len(first) // 2]:.2f} s, p95 {first[int(len(first) * 0.95)]:.2f} s")
    print("memory in MiB:", *memory)
    return outcome


def resident(process: int) -> int:
    return (read_memory(Path(f"/proc/{process}"))[1] or 0) >> 20


def start_server(models: Sequence[Path], *options: str) -> tuple[subprocess.Popen[str], str]:
    """A server on a free port, and its address. Its log is thrown away."""
    command = [sys.executable, "-m", "lltool", "serve", *map(str, models), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    while (line := process.stderr.readline()) and "listening on" not in line:
        pass
    Thread(target=process.stderr.read, daemon=True).start()  # so that it does not fill the pipe
    return process, line.split("listening on ")[1].split(";")[0]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--swap", type=float, help="seconds after which the clients ask for the next model")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:cut])
    process, url = start_server(given.models, *sys.argv[cut + 1 :])
    try:
        outcome = drive(url, process.pid, given.clients, given.seconds, (4, 24, 60), given.swap)
    finally:
        process.terminate()
        process.wait()
    for line in outcome.wrong[:10]:
        print(line)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
