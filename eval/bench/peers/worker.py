"""Runs a peer in a Python process of its own, which may have other packages and answers each line with JSON."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Any

from lltool.eval.bench.peers.peer import runs_in_one
from lltool.eval.bench.settings import Workload
from lltool.gguf.errors import InputError


class Worker:
    """A process that has loaded a model; it runs `script`, one of the files worker_*.py, with `arguments`."""

    columns: Mapping[str, Any]

    def __init__(self, python: str, script: Path, arguments: Sequence[str], family: str, mode: str = "") -> None:
        command = [python, str(script), *arguments]
        self._family = family
        # A pipe that nobody reads would fill up.
        self._talk = TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._talk, text=True
        )
        version = self._answer()["version"]
        self.name = f"{family} {version} {mode}".rstrip()
        self.columns = {"build_commit": f"{family}-{version}", "build_number": 0}

    def time(self, workload: Workload, tokens: Sequence[int]) -> int:
        """Nanoseconds of one run."""
        return round(median(self._time(workload, tokens) for _ in range(runs_in_one(workload))))

    def _time(self, workload: Workload, tokens: Sequence[int]) -> int:
        first, last = workload.depth, workload.depth + workload.prompt
        request = {"depth": tokens[:first], "prompt": tokens[first:last], "generation": tokens[last : workload.context]}
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `_answer` reports why the process ended
        return int(self._answer()["nanoseconds"])

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()
        self._talk.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        try:
            answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        except ValueError:
            answer = {"error": f"answered {line.strip()[:80]!r}"}
        if "error" in answer:
            self._process.kill()
            self.close()
            raise InputError(f"peer {self._family}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._talk.seek(0)
        lines = self._talk.read().strip().splitlines()
        return lines[-1] if lines else f"ended with exit code {code}"


def ask_version(python: str, code: str) -> str | None:
    """What `code` prints in this Python, or None if it fails. Raises InputError if `python` cannot be run."""
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{python}: wanted a Python to run a peer in: {error.strerror}") from error
    return found.stdout.strip() if found.returncode == 0 else None
