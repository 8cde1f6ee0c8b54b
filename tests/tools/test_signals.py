"""Signals: exit codes, a second signal that waits for the cleanup, and signals in a chat."""

import signal
import subprocess
import sys

import pytest

from lltool.tools import signals
from lltool.tools.signals import Stopped, StopSignals, continue_after

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def run_command(body: str, *, prepare: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `body` as the command `lltool inspect` in a process of its own."""
    code = (
        f"import os, signal, sys, time, types\n{prepare}\nfrom lltool.tools.cli import main\n"
        f"def command(argv):\n{''.join(f'    {line}' + chr(10) for line in body.splitlines())}"
        "sys.modules['lltool.tools.inspect'] = types.SimpleNamespace(main=command)\n"
        "sys.argv = ['lltool', 'inspect']\n"
        "sys.exit(main())\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", CODES)
def test_a_signal_ends_a_command_with_the_code_that_shells_expect(name: str) -> None:
    run = run_command(f"signal.raise_signal(signal.{name})")
    assert (run.returncode, run.stderr) == (CODES[name], "lltool: interrupted\n")


@pytest.mark.parametrize("second", CODES)
def test_later_signals_wait_until_all_is_cleaned_up(second: str) -> None:
    run = run_command(
        "try:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "finally:\n"
        f"    signal.raise_signal(signal.{second})\n"
        f"    signal.raise_signal(signal.{second})\n"
        "    print('cleaned up')\n",
        prepare=f"import atexit; atexit.register(lambda: signal.raise_signal(signal.{second}))",  # the last moment
    )
    assert (run.returncode, run.stdout, run.stderr) == (143, "cleaned up\n", "lltool: interrupted\n")


def test_a_signal_after_the_work_changes_nothing() -> None:
    run = run_command("return 1", prepare="import atexit; atexit.register(lambda: signal.raise_signal(signal.SIGINT))")
    assert (run.returncode, run.stderr) == (1, "")


def test_an_ignored_signal_stays_ignored() -> None:
    run = run_command(
        "signal.raise_signal(signal.SIGHUP); return 0", prepare="signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_another_signal_after_a_long_wait_ends_the_process() -> None:
    run = run_command(
        "from lltool.tools import signals\nsignals.PATIENCE = 0.05\n"
        "try:\n    signal.raise_signal(signal.SIGTERM)\n"
        "finally:\n    time.sleep(0.1)\n    signal.raise_signal(signal.SIGTERM)\n    time.sleep(30)"
    )
    assert run.returncode == -signal.SIGTERM


def test_a_signal_while_garbage_is_collected_is_not_lost() -> None:
    run = run_command(
        "class Garbage:\n    def __del__(self):\n        signal.raise_signal(signal.SIGINT)\nGarbage()\ntime.sleep(30)"
    )
    assert (run.returncode, run.stderr) == (130, "lltool: interrupted\n")


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in signals.STOPPING]
    with pytest.raises(Stopped), StopSignals(for_good=False):
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in signals.STOPPING] == before


def test_a_chat_continues_after_an_interrupt_and_ends_after_sigterm() -> None:
    caught = []
    with StopSignals(for_good=False) as guard:
        for _ in range(3):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as interrupt:
                continue_after(interrupt)
                caught.append(interrupt)
        assert len(caught) == 3
        with pytest.raises(Stopped):
            continue_after(Stopped(guard, signal.SIGTERM))
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        assert guard.exit_code == 143
