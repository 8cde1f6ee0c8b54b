"""Runs a chat template in its own process, which is killed and replaced if it fails or exceeds its limits."""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lltool.gguf.errors import InputError

_WORKER = Path(__file__).with_name("template_worker.py")
_SECONDS_TO_START = 60.0  # generous: the machine can be busy, and this time does not count for the template


@dataclass(frozen=True)
class Limits:
    """The limits of one rendering: seconds of processor time and of wall-clock time, bytes of memory and of text.

    If the system cannot limit memory or processor time, only the wall-clock limit applies.
    """

    processor_seconds: float = 2.0
    seconds: float = 5.0
    memory: int = 512 << 20
    output: int = 8 << 20


class TemplateProcess:
    """A process that renders one template for one caller at a time. It ends with this object or with this process.

    It is started when it is first needed, and restarted after it was killed. Every failure is an InputError that begins
    with `name`.
    """

    def __init__(self, source: str, name: str, limits: Limits | None = None) -> None:
        self.name = name
        self.limits = limits or Limits()
        self._source = source
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # id of the process that started it
        self._end: Callable[[], Any] = lambda: None

    def compile(self) -> None:
        """Starts the process. Raises InputError naming the line if the template is not valid Jinja."""
        with self._lock:
            self._start_if_needed()

    def render(self, values: Mapping[str, Any], date: str | None = None) -> str:
        """Renders JSON `values`; `strftime_now` returns `date`, if given, instead of the current date."""
        request = self._serialize({"values": values, "date": date})
        with self._lock:
            return self._ask(self._start_if_needed(), request)

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._stop()

    def _start_if_needed(self) -> "subprocess.Popen[bytes]":
        """The process with the compiled template; starts one if there is none, or if it belongs to a parent process."""
        if self._process is not None and self._process.poll() is None and self._owner == os.getpid():
            return self._process
        self._stop()
        limits = self.limits
        # The worker uses the module path of this process; without `site` it starts faster.
        command = [sys.executable or "python3", "-S", "-P", str(_WORKER)]
        arguments = [limits.processor_seconds, limits.memory, limits.output]
        try:
            process = subprocess.Popen(
                command + [str(argument) for argument in arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                start_new_session=True,  # Ctrl-C reaches only this process, which then ends the other
            )
        except OSError as error:
            raise InputError(f"{self.name}: cannot start {command[0]} to render it: {error.strerror}") from None
        self._process, self._owner = process, os.getpid()
        self._end = weakref.finalize(self, _end, process, self._owner)
        self._answer(process, None, _SECONDS_TO_START)
        self._ask(process, self._serialize({"source": self._source}))
        return process

    def _stop(self) -> None:
        self._process = None
        self._end()

    def _ask(self, process: "subprocess.Popen[bytes]", request: bytes) -> str:
        answer = self._answer(process, request, self.limits.seconds)
        if answer.get("is_last"):
            self._stop()
        if (message := answer.get("error")) is not None:
            line = answer.get("line")
            raise InputError(f"{self.name}{'' if line is None else f', line {line}'}: {message}")
        text = answer.get("text")
        if not isinstance(text, str):
            self._fail("its process returned no text")
        return text

    def _serialize(self, request: Mapping[str, Any]) -> bytes:
        try:
            data = json.dumps(request).encode()
        except (RecursionError, ValueError) as error:  # a number of a million digits is a ValueError
            raise InputError(f"{self.name}: the messages cannot be written as JSON: {error}") from None
        if len(data) > self.limits.memory:
            raise InputError(f"{self.name}: the messages have more than {self.limits.memory >> 20} MiB")
        return len(data).to_bytes(4, "big") + data

    def _answer(self, process: "subprocess.Popen[bytes]", request: bytes | None, seconds: float) -> dict[str, Any]:
        """Sends a request and returns the answer. Raises InputError if there is none within `seconds`."""
        assert process.stdin
        assert process.stdout
        is_late = threading.Event()

        def expire() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        data = b""
        try:
            if request is not None:
                process.stdin.write(request)
                process.stdin.flush()
            data = self._read(process)
        except BrokenPipeError:
            pass  # how the process ended tells why
        except BaseException:
            self._stop()  # after an interrupt, the pending answer would be taken for the answer to the next request
            raise
        finally:
            timer.cancel()
            timer.join()
        if is_late.is_set():
            self._fail(f"took more than {seconds:g} s")
        if not data:
            self._fail(self._explain_exit(process))
        answer = json.loads(data)
        return answer if isinstance(answer, dict) else {}

    def _read(self, process: "subprocess.Popen[bytes]") -> bytes:
        """Reads a whole answer; returns nothing if the process has ended or announces one that is too long."""
        assert process.stdout
        head = process.stdout.read(4)
        size = int.from_bytes(head, "big")
        if len(head) < 4 or size > 6 * self.limits.output + 10_000:  # JSON writes a character as up to six
            return b""
        data = process.stdout.read(size)
        return data if len(data) == size else b""

    def _explain_exit(self, process: "subprocess.Popen[bytes]") -> str:
        assert process.stderr
        process.kill()  # no effect on a process that has ended by itself: it keeps its exit code
        code = process.wait()
        if code == -getattr(signal, "SIGPROF", 0):
            return f"took more than {self.limits.processor_seconds:g} s of processor time"
        lines = process.stderr.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how}{': ' if lines else ''}{lines[-1] if lines else ''}"

    def _fail(self, message: str) -> NoReturn:
        self._stop()
        raise InputError(f"{self.name}: {message}")


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """Ends the process without leaving a zombie; a fork of the owner leaves it alone, as the owner still uses it."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            try:
                stream.close()
            except BrokenPipeError:
                continue
    if os.getpid() == owner:
        process.kill()
        process.wait()
