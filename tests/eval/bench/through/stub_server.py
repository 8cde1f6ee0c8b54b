"""A server of OpenAI's chat that knows no model: it counts words, and answers as many tokens as are asked for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

HEAD = 7  # tokens of its template


class StubServer(ThreadingHTTPServer):
    """Keeps the requests that it got. `refuses` is the number of streamed requests, from the first, that get a 503."""

    daemon_threads = True
    request_queue_size = 256

    counts = True  # whether streamed answers have their usage

    def __init__(self, refuses: int = 0, timings: dict[str, float] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses, self.timings = refuses, timings
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most_running = 0
        self.lock = Lock()

    def handle_error(self, *_: object) -> None:
        """A client may go."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def streamed(self) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body["stream"]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "stub"}]})

    def do_POST(self) -> None:
        stub, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            stub.bodies.append(body)
            is_refused = body["stream"] and len(stub.streamed) <= stub.refuses
            stub.running += 1
            stub.most_running = max(stub.most_running, stub.running)
        if is_refused:
            self._answer(503, {"error": {"message": "busy"}})
        elif body["stream"]:
            self._stream(body)
        else:
            self._answer(200, {"choices": [{"message": {"content": "a"}}], "usage": usage(body)})
        with stub.lock:
            stub.running -= 1

    def _stream(self, body: dict[str, Any]) -> None:
        pieces: list[dict[str, Any]] = [{"choices": [{"delta": {"content": "a"}}]}] * body["max_tokens"]
        more = {"timings": self.server.timings} if self.server.timings else {}
        if self.server.counts:
            pieces.append({"choices": [], "usage": usage(body), **more})
        data = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
        self._send(200, "text/event-stream", data.encode())

    def _answer(self, status: int, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def usage(body: dict[str, Any]) -> dict[str, int]:
    words = len(body["messages"][0]["content"].split())
    return {"prompt_tokens": HEAD + words, "completion_tokens": body["max_tokens"]}


@contextmanager
def stub_server(refuses: int = 0, timings: dict[str, float] | None = None) -> Iterator[StubServer]:
    with StubServer(refuses, timings) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
