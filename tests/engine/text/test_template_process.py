"""Chat templates in their process: limits of time, memory and output, what breaks it, and that nothing is left."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lltool.engine.text.template_process import Limits, TemplateProcess
from lltool.gguf.errors import InputError

HELLO = "Hello {{ name }}"


def render(source: str, limits: Limits | None = None) -> str:
    process = TemplateProcess(source, "some template", limits)
    try:
        return process.render({"name": "x"})
    finally:
        process.close()


def is_alive(id: int) -> bool:
    try:
        os.kill(id, 0)
    except ProcessLookupError:
        return False
    return True


def process_id(process: TemplateProcess) -> int:
    assert process._process
    return process._process.pid


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'x' * 2000000000 }}", "needs more than 512 MiB of memory"),  # Jinja computes constants when it compiles
        ("{{ name * 2000000000 }}", "needs more than 512 MiB of memory"),
        ("{{ name|center(2000000000) }}", "needs more than 512 MiB of memory"),
        ("{{ '%999999999d'|format(1) }}", "needs more than 512 MiB of memory"),
        ("{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "writes more than 8 MiB"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
        ("\n{{ [].__class__.x }}", "line 2: access to attribute '__class__' of 'list' object is unsafe"),
        (
            "{% set n = namespace() %}\n{% set n._x = 1 %}",
            "line 2: a namespace takes no name that begins with an under",
        ),
        ("{{ dict.__subclasses__() }}", "line 1: .*has no attribute '__subclasses__'"),
        ("{% include 'other' %}", "line 1: no loader for this environment"),
        ("{{ raise_exception('n' * 99999) }}", "line 1: n{1000}$"),
    ],
)
def test_a_failure_is_one_line_that_names_the_template(source: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^some template(, |: )(.*)?{message}") as raised:
        render(source)
    assert "\n" not in str(raised.value)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_processor_time_is_limited() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^some template: took more than 0.2 s of processor time$"):
        render(ENDLESS, Limits(processor_seconds=0.2, seconds=60))
    assert time.monotonic() - start < 30


def test_time_is_limited_and_the_process_is_replaced() -> None:
    process = TemplateProcess("{% if name == 'x' %}" + ENDLESS + "{% endif %}" + HELLO, "t", Limits(60.0, 0.3))
    process.compile()
    first = process_id(process)
    with pytest.raises(InputError, match=r"^t: took more than 0.3 s$"):
        process.render({"name": "x"})
    assert not is_alive(first)
    process.limits = Limits()
    assert process.render({"name": "y"}) == "Hello y"
    process.close()


def test_a_process_that_breaks_is_said_and_replaced() -> None:
    process = TemplateProcess(HELLO, "t")
    assert process.render({"name": "a"}) == "Hello a"
    first = process_id(process)
    os.kill(first, signal.SIGSTOP)
    threading.Timer(0.1, os.kill, (first, signal.SIGSEGV)).start()
    threading.Timer(0.2, os.kill, (first, signal.SIGCONT)).start()
    with pytest.raises(InputError, match=r"^t: its process ended by signal SIGSEGV"):
        process.render({"name": "b"})
    assert process.render({"name": "c"}) == "Hello c"
    second = process_id(process)
    assert second != first
    os.kill(second, signal.SIGKILL)  # between two renderings it is not even missed
    while process._process and process._process.poll() is None:
        time.sleep(0.01)
    assert process.render({"name": "d"}) == "Hello d"
    process.close()


def test_the_process_ends_with_its_object() -> None:
    process = TemplateProcess(HELLO, "t")
    process.compile()
    id = process_id(process)
    assert is_alive(id)
    del process
    gc.collect()
    assert not is_alive(id)  # nor is it a zombie, which could be signalled


def test_an_interrupt_ends_the_rendering_and_the_process() -> None:
    process = TemplateProcess(ENDLESS, "t", Limits(60.0, 60.0))
    process.compile()
    id = process_id(process)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        process.render({})
    assert not is_alive(id)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_process_ends_with_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import time; from lltool.engine.text.template_process import TemplateProcess as T\n"
        "t = T('x', 't'); t.compile(); print(t._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
    ) as parent:
        assert parent.stdout
        id = int(parent.stdout.readline())
        parent.send_signal(how)
        parent.wait()
    deadline = time.monotonic() + 10
    while is_alive(id) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(id)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_a_process_of_its_own() -> None:
    process = TemplateProcess(HELLO, "t")
    process.compile()
    id = process_id(process)
    child = os.fork()
    if child == 0:
        ok = process.render({"name": "c"}) == "Hello c" and process_id(process) != id
        process.close()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert process.render({"name": "p"}) == "Hello p"
    assert process_id(process) == id
    process.close()


def test_threads_take_turns() -> None:
    process = TemplateProcess(HELLO, "t")
    wrong = []

    def work(number: int) -> None:
        wrong.extend(i for i in range(20) if process.render({"name": f"{number} {i}"}) != f"Hello {number} {i}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.close()
    assert not wrong


def test_odd_values_arrive() -> None:
    process = TemplateProcess("{{ value|tojson }} {{ value }}", "t")
    assert process.render({"value": float("nan")}) == "NaN nan"
    assert process.render({"value": "\ud800"}) == '"\ud800" \ud800'
    assert process.render({"value": {"ä": None}}) == '{"ä": null} ' + str({"ä": None})
    with pytest.raises(InputError, match=r"^t: the messages cannot be written as JSON: "):
        process.render({"value": 10**5000})
    process.close()


def test_nothing_of_the_current_folder_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert render(HELLO) == "Hello x"


def test_what_keeps_it_from_starting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(
        InputError, match=r"^some template: its process ended with exit code 1: .*No module named 'jinja2'"
    ):
        render(HELLO)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(InputError, match=r"^some template: cannot start /no/such/python to render it: No such file"):
        render(HELLO)
