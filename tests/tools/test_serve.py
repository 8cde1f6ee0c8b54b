"""`lltool serve`: its options, and a server on a real socket from start to stop."""

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lltool.tools import cli
from tests.engine.server.tiny_server import write_tiny


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("serve") / "tiny.gguf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "anyone who reaches this address could use the server"),
        (["--port", "65536"], "is not a port"),
        (["--ssl-keyfile", "key.pem"], "belong together"),
        (["--ssl-keyfile", "{model}", "--ssl-certfile", "{model}"], "no certificate with its private key"),
        (["--alias", "a,a", "{model}"], "two models have the name"),
    ],
)
def test_refusals(tiny_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [argument.format(model=tiny_path) for argument in arguments]
    assert cli.main(["serve", str(tiny_path), *given]) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_refused(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert cli.main(["serve", str(tiny_path), "--port", str(other.getsockname()[1])]) == 2
    assert "cannot listen there: Address already in use" in capsys.readouterr().err


def test_a_file_without_keys_is_refused(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("# none yet\n\n")
    assert cli.main(["serve", str(tiny_path), "--api-key-file", str(tmp_path / "keys")]) == 2
    assert "has no key" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_listens_until_a_signal(tiny_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "lltool", "serve", str(tiny_path), "--port", "0", "-t", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        assert line.startswith("lltool: note: listening on http://127.0.0.1:")
        assert line.endswith("; model tiny\n")
        address = line.split()[4].rstrip(";")
        with urllib.request.urlopen(f"{address}/health") as response:
            assert response.read() == b'{"status":"ok"}'
        request = urllib.request.Request(f"{address}/v1/completions", b'{"prompt": "abc", "max_tokens": 3}')
        with urllib.request.urlopen(request) as response:
            assert response.status == 200
        process.send_signal(number)
        log = process.stderr.read()
    assert process.returncode == code
    assert "path=/v1/completions status=200" in log
    assert "Traceback" not in log
