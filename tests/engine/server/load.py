"""Many clients at once, some of which go away or send nonsense: each request gets its answer or the right status.

    python -m tests.engine.server.load MODEL --clients 32 --seconds 60 -- --parallel 8

starts a server of the model with these options on a free port, asks each question alone, and then all clients ask at
random. It prints what was answered, the times, and the server's memory; it ends with 1 if an answer was wrong.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

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


@dataclass
class Outcome:
    """What all clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # seconds to the first token
    tokens: int = 0


def body(question: str, count: int, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "temperature": 0, "max_tokens": count, "stream": stream}


async def answer(client: httpx.AsyncClient, question: str, count: int) -> str:
    response = await client.post("/v1/chat/completions", json=body(question, count, False))
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


async def stream(
    client: httpx.AsyncClient, question: str, count: int, outcome: Outcome, leave_after: int | None = None
) -> str | None:
    """The streamed answer; None if the client left after so many events."""
    text, events, start = "", 0, time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json=body(question, count, True)) as response:
        if response.status_code != 200:
            outcome.counts[f"status {response.status_code}"] += 1
            return None
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            events += 1
            delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
            if delta.get("content") and not text:
                outcome.first.append(time.perf_counter() - start)
            text += delta.get("content") or ""
            outcome.tokens += bool(delta.get("content"))
            if leave_after is not None and events > leave_after:
                return None
    return text


async def one_client(url: str, number: int, until: float, alone: dict[tuple[str, int], str], outcome: Outcome) -> None:
    choose = random.Random(number)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        while time.monotonic() < until:
            kind = choose.random()
            question, count = choose.choice(list(alone))
            if kind < 0.05:
                data, status = choose.choice(BAD)
                found = await client.post("/v1/chat/completions", content=data)
                outcome.counts["malformed"] += 1
                if found.status_code != status:
                    outcome.wrong.append(f"{data[:60]!r} got {found.status_code}, wanted {status}")
            elif kind < 0.15:
                await stream(client, question, count, outcome, leave_after=choose.randrange(10))
                outcome.counts["cancelled"] += 1
            else:
                text = await stream(client, question, count, outcome)
                if text is None:
                    continue
                outcome.counts["answered"] += 1
                if text != alone[question, count]:
                    outcome.wrong.append(f"{question[:40]!r}: {text[:200]!r}, alone {alone[question, count][:200]!r}")


def resident(process: int) -> int:
    """The memory of a process in MiB, without the pages of files."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) >> 10


async def drive(url: str, process: int, clients: int, seconds: float, counts: tuple[int, ...]) -> Outcome:
    outcome = Outcome()
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        alone = {(question, count): await answer(client, question, count) for question in QUESTIONS for count in counts}
    memory = [resident(process)]
    start = time.monotonic()
    running = [
        asyncio.create_task(one_client(url, number, start + seconds, alone, outcome)) for number in range(clients)
    ]
    while not all(task.done() for task in running):
        await asyncio.sleep(max(seconds / 8, 0.05))
        memory.append(resident(process))
    await asyncio.gather(*running)
    elapsed = time.monotonic() - start
    first = sorted(outcome.first)
    print(dict(outcome.counts), f"{len(outcome.wrong)} wrong, {outcome.tokens / elapsed:.1f} tokens/s")
    if first:
        print(f"first token: median {first[len(first) // 2]:.2f} s, p95 {first[int(len(first) * 0.95)]:.2f} s")
    print("memory in MiB:", *memory)
    return outcome


def start_server(model: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A server on a free port, and its address."""
    command = [sys.executable, "-m", "lltool", "serve", str(model), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    while (line := process.stderr.readline()) and "listening on" not in line:
        pass
    return process, line.split("listening on ")[1].split(";")[0]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:cut])
    process, url = start_server(given.model, *sys.argv[cut + 1 :])
    assert process.stderr
    reader = asyncio.to_thread(process.stderr.read)  # so that the log does not fill the pipe

    async def scenario() -> Outcome:
        reading = asyncio.create_task(reader)
        try:
            return await drive(url, process.pid, given.clients, given.seconds, (4, 24, 60))
        finally:
            process.terminate()
            await reading

    outcome = asyncio.run(scenario())
    process.wait()
    for line in outcome.wrong[:10]:
        print(line)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
