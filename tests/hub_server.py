"""A server with the part of the Hub's HTTP interface that huggingface_hub needs to list and download models."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
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

    def fetched(self) -> set[str]:
        """The files that were downloaded."""
        return {request.split("/resolve/")[1].split("/", 1)[1] for request in self.requests if "GET /t" in request}


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
        self.wfile.write(self.answer())

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
        return self.send(data, headers={"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

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
