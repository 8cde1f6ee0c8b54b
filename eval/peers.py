"""Paired speed comparison with llama-cpp-python: A B A B in one run, judged by the median of the pairs' ratios.

On a shared machine absolute speeds wander by a third within minutes; the ratio of neighbours does not.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import numpy as np

from lltool.engine.batch import Precision
from lltool.engine.model import load_model
from lltool.eval.throughput import Workload, time_workload
from lltool.gguf.errors import InputError

WORKER = Path(__file__).resolve().with_name("peer_llama_cpp.py")


@dataclass(frozen=True)
class Pairing:
    """Nanoseconds of the same runs in this engine and in the peer, in the order in which they were made."""

    path: Path
    workload: Workload
    threads: int
    peer: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the peer we were, a pair."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    def speed(self, nanoseconds: Sequence[int]) -> float:
        """Median tokens a second."""
        return self.workload.tokens * 1e9 / median(nanoseconds)


def peer_version(python: str) -> str | None:
    """The version of llama-cpp-python that this Python can import, or None."""
    code = "import llama_cpp; print(llama_cpp.__version__)"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{python}: wanted a Python with llama-cpp-python: {error.strerror}") from error
    return found.stdout.strip() if found.returncode == 0 else None


def compare(
    path: Path,
    python: str,
    *,
    workloads: Sequence[Workload] = (Workload(512, 0), Workload(0, 64)),
    threads: int,
    repetitions: int = 5,
    batch: int = 512,
    warm_up: bool = True,
    precision: Precision = "int8",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pairing]:
    """Runs every workload in turns with the peer in `python`, on the same tokens; `precision` is ours."""
    context = max(w.tokens for w in workloads)
    random = np.random.default_rng(seed)
    ours: dict[Workload, list[int]] = {w: [] for w in workloads}
    theirs: dict[Workload, list[int]] = {w: [] for w in workloads}
    with (
        load_model(path, threads=threads, context=context, batch=batch, precision=precision) as model,
        Peer(python, path, threads=threads, context=context, batch=batch) as peer,
    ):
        for repetition in range(-warm_up, repetitions):
            for number, workload in enumerate(workloads):
                tokens = random.integers(0, model.config.vocab, workload.tokens, dtype=np.int32)
                pair = time_workload(model, workload, tokens), peer.time(tokens.tolist(), at_once=workload.prompt > 0)
                if repetition >= 0:  # the round before warms up
                    ours[workload].append(pair[0])
                    theirs[workload].append(pair[1])
                    if progress:
                        progress(repetition * len(workloads) + number + 1, repetitions * len(workloads))
        return [Pairing(path, w, threads, peer.version, tuple(ours[w]), tuple(theirs[w])) for w in workloads]


class Peer(AbstractContextManager["Peer"]):
    """A process of another Python with the model loaded in llama-cpp-python; idle while it is not asked."""

    def __init__(self, python: str, path: Path, *, threads: int, context: int, batch: int) -> None:
        command = [python, str(WORKER), str(path), str(threads), str(context), str(batch)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.version: str = self._answer()["version"]

    def time(self, tokens: list[int], *, at_once: bool) -> int:
        """Nanoseconds of one run."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"tokens": tokens, "at_once": at_once}) + "\n")
        self._process.stdin.flush()
        return int(self._answer()["nanoseconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self._process.kill()
            self._process.communicate()
            raise InputError(f"peer: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        assert self._process.stderr
        lines = self._process.stderr.read().strip().splitlines()
        return lines[-1] if lines else f"ended with exit code {self._process.wait()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()


def format_pairings(pairings: Sequence[Pairing]) -> str:
    """A Markdown table; a ratio above 1 means that we are faster."""
    lines = [
        "| model | test | threads | lltool t/s | llama-cpp-python t/s | ratio (median of pairs) | pairs from – to |",
        "| ----- | ---- | ------: | ---------: | -------------------: | ----------------------: | --------------: |",
    ]
    for p in pairings:
        lines.append(
            f"| {p.path.name} | {p.workload} | {p.threads} | {p.speed(p.ours):.1f} | {p.speed(p.theirs):.1f} "
            f"| {p.ratio:.2f} | {min(p.ratios):.2f} – {max(p.ratios):.2f} |"
        )
    return "\n".join(lines)
