"""Ctrl-C, SIGTERM and SIGHUP: the first signal unwinds the command, later ones wait until it has cleaned up."""

import os
import signal
import sys
from threading import Timer, current_thread, main_thread
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 5.0
"""Seconds of unwinding after which another signal ends the process at once and leaves its temporary files."""


class Stopped(KeyboardInterrupt):
    """A signal sent to this process; it is a KeyboardInterrupt, so that results are kept as after Ctrl-C."""

    def __init__(self, guard: "StopSignals", number: int) -> None:
        self.guard, self.number = guard, number


def continue_after(interrupt: KeyboardInterrupt) -> None:
    """For code that catches Ctrl-C and continues: lets the next signal interrupt again. Raises all but Ctrl-C again."""
    if isinstance(interrupt, Stopped):
        if interrupt.number != signal.SIGINT:
            raise interrupt
        interrupt.guard.re_arm()


class StopSignals:
    """A context in which the first signal raises Stopped. A signal that is ignored, as under nohup, stays ignored.

    `for_good` is for a context that lasts until the process exits: at its end, further signals are ignored.
    """

    def __init__(self, *, for_good: bool) -> None:
        self._for_good = for_good
        self._previous: dict[int, Any] = {}
        self._received: int | None = None  # the signal for which the command is being unwound
        self._since = 0.0

    @property
    def exit_code(self) -> int:
        """The exit code that a shell expects: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + (self._received or signal.SIGINT)

    def re_arm(self) -> None:
        self._received = None

    def __enter__(self) -> Self:
        if current_thread() is main_thread():  # signals never interrupt other threads
            for number in STOPPING:
                if (handler := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler):
                    self._previous[number] = handler
                    signal.signal(number, self._receive)
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._raise_again
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._for_good else handler)
        if self._previous:
            sys.unraisablehook = self._unraisable

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._since = number, monotonic()
            raise Stopped(self, number)
        if monotonic() - self._since > PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _raise_again(self, unraisable: Any) -> None:
        """Sends a signal again that Python only printed, because it came while garbage was collected."""
        if isinstance(unraisable.exc_value, Stopped):
            number = unraisable.exc_value.number
            self.re_arm()
            Timer(0.01, os.kill, (os.getpid(), number)).start()
        else:
            self._unraisable(unraisable)
