"""Files read in ranges over HTTP, from a server that drops connections, lies, throttles, and goes away."""

import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf import remote
from lltool.gguf.errors import FileChanged, InputError
from lltool.gguf.remote import Chunks, RemoteFile
from tests.hub_server import Hub, Ranged, serve

SIZE = 300_000
DATA = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "w.bin").write_bytes(DATA)
    with serve(Hub({"team/files": tmp_path / "files"})) as hub:
        yield hub


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def file(hub: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> RemoteFile:
    """The file in chunks of 64 KiB; pauses are recorded instead of waited for."""
    monkeypatch.setattr(remote, "CHUNK", 1 << 16)
    monkeypatch.setattr(remote, "_SMALL", 1000)
    url = f"{hub.endpoint}/team/files/resolve/main/w.bin"
    return RemoteFile("team/files/w.bin", url, {}, SIZE, "", Chunks(), waits.append)


def test_windows_are_the_bytes_of_the_file(file: RemoteFile, hub: Hub) -> None:
    generator = np.random.default_rng(1)
    for _ in range(40):
        start, stop = sorted(generator.integers(0, SIZE + 1, 2).tolist())
        assert file.window(start, stop).tobytes() == DATA[start:stop]
    assert file.window(0, SIZE).tobytes() == DATA
    assert len(hub.requests) < 60  # chunks are kept


def test_small_windows_fetch_nothing_else(file: RemoteFile, hub: Hub) -> None:
    received: list[int] = []

    def watch(ranged: Ranged) -> bool:
        received.append(ranged.stop - ranged.start)
        return False

    hub.misbehave = watch
    assert file.window(70_000, 70_008).tobytes() == DATA[70_000:70_008]
    assert received == [8]


def drop(ranged: Ranged) -> bool:
    """Half of what is asked for, then the connection ends."""
    body = ranged.data[ranged.start : ranged.stop]
    return len(body) > 100 and ranged.answer(body[: len(body) // 2], length=len(body))


def tries(ranged: Ranged) -> int:
    """How often these bytes were asked for. Several are asked for at once, so that all requests say nothing."""
    asked: Counter[int] = ranged.handler.hub.__dict__.setdefault("asked", Counter())  # type: ignore[attr-defined]
    asked[ranged.start] += 1
    return asked[ranged.start]


def end_without_a_word(ranged: Ranged) -> bool:
    ranged.handler.close_connection = True
    return tries(ranged) % 3 != 0


def busy(ranged: Ranged) -> bool:
    """Every other answer is that the server has too much to do."""
    return tries(ranged) % 2 == 1 and ranged.answer(b"", status=503)


def throttle(ranged: Ranged) -> bool:
    """A few bytes at a time."""
    body = ranged.data[ranged.start : ranged.stop]
    ranged.answer(b"", length=len(body))
    for first in range(0, len(body), 20_000):
        ranged.handler.wfile.write(body[first : first + 20_000])
        ranged.handler.wfile.flush()
        time.sleep(0.001)
    return True


def send_too_much(ranged: Ranged) -> bool:
    body = ranged.data[ranged.start : ranged.stop]
    return ranged.answer(body + b"more" * 1000)


def promise_too_little(ranged: Ranged) -> bool:
    """A Content-Length of half of the bytes."""
    body = ranged.data[ranged.start : ranged.stop]
    return len(body) > 100 and ranged.answer(body[: len(body) // 2])


@pytest.mark.parametrize(
    "misbehave", [drop, end_without_a_word, busy, throttle, send_too_much, promise_too_little], ids=lambda f: f.__name__
)
def test_what_a_bad_server_leaves_out_is_fetched_again(
    misbehave: Callable[[Ranged], bool], file: RemoteFile, hub: Hub
) -> None:
    hub.misbehave = misbehave
    assert file.window(10, SIZE - 10).tobytes() == DATA[10 : SIZE - 10]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda r: r.answer(r.data, status=200), "does not give parts of files; leave out --remote"),
        (
            lambda r: r.answer(r.data[: r.stop - r.start], stated=f"bytes 0-{r.stop - r.start - 1}/{SIZE}"),
            rf"gave bytes 0-9/{SIZE}, wanted bytes 50-59 of {SIZE}; it contradicts itself",
        ),
        (
            lambda r: r.answer(r.data[r.start : r.stop], stated=f"bytes {r.start}-{r.stop - 1}/{SIZE + 1}"),
            rf"gave bytes 50-59/{SIZE + 1}, wanted bytes 50-59 of {SIZE}",
        ),
        (lambda r: r.answer(r.data[50:60], stated="all"), "gave all, wanted bytes 50-59"),
        (lambda r: r.answer(b"", status=404), "the server says 404 Not Found"),
    ],
)
def test_lies_are_refused(answer: Callable[[Ranged], bool], message: str, file: RemoteFile, hub: Hub) -> None:
    hub.misbehave = answer
    with pytest.raises(InputError, match=f"team/files/w.bin: .*{message}"):
        file.window(50, 60)


def test_a_server_that_is_gone_is_an_error_after_some_attempts(waits: list[float], hub: Hub, file: RemoteFile) -> None:
    hub.misbehave = lambda ranged: ranged.answer(b"", status=503)
    with pytest.raises(InputError, match=r"gone after 0 of 300000 bytes, 8 attempts .* 503 .*--resume to continue"):
        file.window(0, 10)
    assert waits == [0.5, 1, 2, 4, 8, 10, 10]
    with serve(Hub({})) as other:
        address = other.endpoint
    gone = RemoteFile("x", address, {}, SIZE, "", Chunks(), lambda seconds: None)
    with pytest.raises(InputError, match="x: the server is gone after 0 of 300000 bytes, 8 attempts in a row failed"):
        gone.window(0, SIZE)


def test_a_file_that_changes_is_refused(file: RemoteFile, tmp_path: Path) -> None:
    file.window(0, 8)
    (tmp_path / "files" / "w.bin").write_bytes(DATA[::-1])
    with pytest.raises(FileChanged, match=r"w\.bin: has changed on the server while it was read"):
        file.window(8, 16)


def test_a_token_stays_with_its_host(file: RemoteFile, hub: Hub) -> None:
    seen: list[tuple[int, str | None]] = []

    def answer(ranged: Ranged) -> bool:
        seen.append((ranged.handler.server.server_port, ranged.handler.headers.get("Authorization")))  # type: ignore[attr-defined]
        return False

    class Redirect(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            seen.append((self.server.server_port, self.headers.get("Authorization")))  # type: ignore[attr-defined]
            self.send_response(302)
            self.send_header("Location", file._url)
            self.send_header("Content-Length", "0")
            self.end_headers()

    hub.misbehave = answer
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/x"
        redirected = RemoteFile("x", url, {"Authorization": "Bearer hf_secret"}, SIZE, "", Chunks())
        assert redirected.window(5, 10).tobytes() == DATA[5:10]
        server.shutdown()
        thread.join()
    assert [token for _, token in seen] == ["Bearer hf_secret", None]
    assert seen[0][0] != seen[1][0]
