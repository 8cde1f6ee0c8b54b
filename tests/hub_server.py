"""A server with the part of the Hub's HTTP interface that huggingface_hub needs to list and download models."""

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


@dataclass
class Hub:
    """Repositories by id, each a folder; `gated` ones give their list of files and nothing else without `token`."""

    repositories: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    status: int = 200  # of every answer, if it is not 200
    requests: list[str] = field(default_factory=list)  # "METHOD path"
    endpoint: str = ""
    # Answers a request for a range of bytes in its own way and returns True, or returns False
    misbehave: Callable[["Ranged"], bool] = lambda ranged: False

    def fetched(self) -> set[str]:
        """The files that were downloaded."""
        return {request.split("/resolve/")[1].split("/", 1)[1] for request in self.requests if "GET /t" in request}


@dataclass(frozen=True)
class Ranged:
    """A request for bytes [start, stop) of a file with this content; `handler` can answer it."""

    handler: http.server.BaseHTTPRequestHandler
    name: str
    data: bytes
    start: int
    stop: int

    def answer(self, body: bytes, *, status: int = 206, stated: str = "", length: int | None = None) -> bool:
        """Sends `body` under headers that may say something else, and closes the connection."""
        handler = self.handler
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", stated or f"bytes {self.start}-{self.stop - 1}/{len(self.data)}")
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True
        return True


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serves the repositories at `hub.endpoint`, an address of this machine. Their organizations begin with a t."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        if answer := self.answer():
            self.wfile.write(answer)

    def answer(self) -> bytes:
        path = self.path.split("?")[0].strip("/")
        self.hub.requests.append(f"{self.command} /{path}")
        if self.hub.status != 200:
            return self.send(b"{}", self.hub.status)
        parts = path.removeprefix("api/models/").split("/")
        id, rest = "/".join(parts[:2]), parts[2:]
        folder = self.hub.repositories.get(id)
        if folder is None:
            return self.send(b"", 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        if rest[:1] == ["tree"]:
            return self.send(json.dumps([self.entry(folder, name) for name in names]).encode())
        if rest[:1] != ["resolve"]:
            siblings = [{"rfilename": name} for name in names]
            return self.send(json.dumps({"_id": "1", "id": id, "sha": COMMIT, "siblings": siblings}).encode())
        name = "/".join(rest[2:])
        if id in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.send(b"", 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if name not in names:
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        data = (folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if name.endswith(".safetensors"):  # as for all large files on the Hub
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        if self.command == "GET" and (found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            ranged = Ranged(self, name, data, int(found[1]), min(len(data), int(found[2]) + 1))
            if self.hub.misbehave(ranged):
                return b""
            headers["Content-Range"] = f"bytes {ranged.start}-{ranged.stop - 1}/{len(data)}"
            return self.send(data[ranged.start : ranged.stop], 206, headers)
        return self.send(data, headers=headers)

    def entry(self, folder: Path, name: str) -> dict[str, Any]:
        data = (folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> bytes:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        return data
