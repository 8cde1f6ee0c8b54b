"""What the scheduler did and when, in a file of the Chrome trace format, for Perfetto and chrome://tracing.

The format is Google's "Trace Event Format": each event has a phase, microseconds, and the row on which it is drawn.
A model's engine has a row with its steps; each request has one of its own, which begins with its HTTP request.
No text of prompts or answers is in it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

from lltool.engine.generate import Step
from lltool.engine.server.job import Job
from lltool.gguf.errors import InputError

_BEGIN, _END = b"[\n", b"\n]\n"
_BUFFER = 1 << 15  # bytes that wait to be written
_SECONDS = 1.0  # the longest that they wait, if another event follows
_ROOM = 256  # bytes for the last event and the end
_PROCESS = 1


class Trace:
    """A trace in a file, of at most `most` bytes; what comes later is left out, and the last event says so.

    The file is valid JSON at every moment: each write replaces its end by further events and a new end. All methods may
    be called by any thread. Raises InputError if the file cannot be made.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise InputError(f"--trace {path}: cannot be written: {error.strerror}") from None
        self._lock = Lock()
        self._waiting = b""
        self._written = self._origin = perf_counter()
        self._rows: dict[str, int] = {}
        self._is_full = self._is_closed = False
        first = {"name": "process_name", "ph": "M", "pid": _PROCESS, "args": {"name": "lltool serve"}}
        begin = _BEGIN + json.dumps(first).encode()
        self._file.write(begin + _END)
        self._size = len(begin)

    def step(self, model: str, step: Step) -> None:
        """A step of a model's engine: what was in its batch, then evaluating it, and choosing tokens."""
        texts, prefilled, decoded = [], 0, 0
        for request, count in step.taken:
            assert isinstance(request, Job)
            is_decoded = request.timings.tokens > 1  # else this step could at most give the first
            prefilled, decoded = prefilled + count * (not is_decoded), decoded + is_decoded
            texts.append({"request": request.label, "tokens": count})
        counts = {"prefilled": prefilled, "decoded": decoded, "waiting": step.waiting, "texts": texts}
        row = self._row(f"engine {model}")
        sampling = step.ended - step.sample_seconds
        self._add(
            self._span("step", row, step.started, step.ended, counts),
            self._span("evaluate", row, step.started, step.evaluated),
            self._span("logits", row, step.evaluated, sampling),
            self._span("sample", row, sampling, step.ended),
        )

    def request(self, record: dict[str, Any], jobs: Sequence[Job], started: float, ended: float) -> None:
        """A request that is over, with what its time went to; `record` is its line in the log."""
        shown = {name: value for name, value in record.items() if name not in ("id", "client")}
        spans = [(f"{record['method']} {record['path']}", started, ended, shown)]
        for job in jobs:
            spans.append(("template", job.submitted - job.template_seconds, job.submitted, {}))
            spans.append(("queue", job.submitted, job.started, {}))
            if job.timings.tokens:
                first = job.started + job.timings.first_token_seconds
                prompt = {"prompt": job.prompt_tokens, "cached": job.timings.cached}
                spans.append(("prefill", job.started, first, prompt))
                last = max(first, job.ended)
                spans.append(("decode", first, last, {"generated": job.timings.tokens, "reason": job.reason}))
        events = []
        for name, begin, end, more in spans:
            common = {"name": name, "cat": "request", "id": record["id"], "pid": _PROCESS, "tid": 0}
            events.append({**common, "ph": "b", "ts": self._time(begin), "args": more})
            events.append({**common, "ph": "e", "ts": self._time(max(begin, end))})
        self._add(*events)
        with self._lock:  # nothing may follow for long
            self._write()

    def close(self) -> None:
        with self._lock:
            if not self._is_closed:
                self._write()
                self._is_closed = True
                self._file.close()

    def _row(self, name: str) -> int:
        """The number of a row; when it is first used, an event names it."""
        with self._lock:
            is_new = name not in self._rows
            number = self._rows.setdefault(name, len(self._rows) + 1)
        if is_new:
            self._add({"name": "thread_name", "ph": "M", "pid": _PROCESS, "tid": number, "args": {"name": name}})
        return number

    def _add(self, *events: dict[str, Any]) -> None:
        data = b"".join(b",\n" + json.dumps(event).encode() for event in events)
        with self._lock:
            if self._is_full or self._is_closed:
                return
            if self._size + len(self._waiting) + len(data) + _ROOM > self.most:
                self._is_full = True
                last = {"name": f"full: {self.most} bytes", "ph": "i", "s": "g", "pid": _PROCESS, "tid": 0}
                data = b",\n" + json.dumps({**last, "ts": self._time(perf_counter())}).encode()
            self._waiting += data
            if self._is_full or len(self._waiting) > _BUFFER or perf_counter() - self._written > _SECONDS:
                self._write()

    def _write(self) -> None:
        """Puts what waits in place of the end. One call of the system, which a kill does not cut."""
        if self._waiting and not self._is_closed:
            self._file.seek(self._size)
            self._file.write(self._waiting + _END)
            self._size += len(self._waiting)
            self._waiting = b""
        self._written = perf_counter()

    def _span(
        self, name: str, row: int, begin: float, end: float, more: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        time, length = self._time(begin), round(1e6 * max(0.0, end - begin), 1)
        return {"name": name, "ph": "X", "pid": _PROCESS, "tid": row, "ts": time, "dur": length, "args": more or {}}

    def _time(self, seconds: float) -> float:
        """Microseconds since the trace began."""
        return round(1e6 * (seconds - self._origin), 1)
