"""A terminal with a command in it: tests type keys, and read the screen."""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pexpect
import pyte

COLUMNS, LINES = 100, 200


class Terminal:
    """Runs `lltool` with `arguments` in a terminal of COLUMNS by LINES characters, which interprets what it prints."""

    def __init__(self, arguments: list[str], environment: dict[str, str] | None = None, stdout: str = "") -> None:
        command = [sys.executable, "-m", "lltool", *arguments]
        if stdout:
            command = ["sh", "-c", f'exec "$@" > {stdout}', "sh", *command]
        own = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **(environment or {})}
        self.child = pexpect.spawn(
            command[0], command[1:], env=os.environ | own, dimensions=(LINES, COLUMNS), timeout=30
        )
        self.child.delaybeforesend = None
        self.printed = b""
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without empty lines."""
        return [line.rstrip() for line in self._screen.display if line.strip()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def press(self, keys: str) -> None:
        self.child.send(keys)

    def paste(self, text: str) -> None:
        """Pastes as a terminal does: as keys, unless the command has asked for bracketed paste."""
        is_asked = self.printed.rfind(b"\x1b[?2004h") > self.printed.rfind(b"\x1b[?2004l")
        self.press(f"\x1b[200~{text}\x1b[201~" if is_asked else text.replace("\n", "\r"))

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Waits until the screen fulfils a condition."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.text[-2000:]
            self.read()

    def wait_for(self, text: str) -> None:
        self.wait(lambda: text in self.text)

    def wait_for_prompt(self) -> None:
        """Waits until the chat waits for an entry: its last line is an empty prompt."""
        self.wait(lambda: bool(self.lines) and self.lines[-1] == ">")

    def read(self) -> None:
        """Reads what the command has printed in the next moment, if anything."""
        try:
            data = self.child.read_nonblocking(1 << 16, timeout=0.1)
        except pexpect.TIMEOUT:
            return
        except pexpect.EOF:
            time.sleep(0.05)
            return
        self.printed += data
        self._stream.feed(data)

    def wait_for_end(self) -> int:
        """The exit code."""
        self.wait(lambda: not self.child.isalive())
        self.child.close()
        code = self.child.exitstatus
        return -self.child.signalstatus if code is None else code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
        self.child.close()
