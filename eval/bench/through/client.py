"""A client of an OpenAI-compatible server: one request at a time, with the time of each piece of its answer."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from lltool.gguf.errors import InputError

CHAT = "/v1/chat/completions"
_SECONDS = 600.0  # without a byte of an answer, after which a server counts as gone


@dataclass(frozen=True)
class Server:
    """A server by its address, without the /v1 at its end; `name` stands for it in tables."""

    url: str
    name: str
    key: str | None = None

    @classmethod
    def parse(cls, text: str, key: str | None = None) -> "Server":
        """A server of an address, `http://127.0.0.1:8080`, or of a name and an address, `NAME=URL`.

        Raises InputError for other texts.
        """
        named = re.fullmatch(r"([^=/:]+)=(.*)", text)
        name, url = (named[1], named[2]) if named else ("", text)
        try:
            parts = urlsplit(url)
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_good = False
        if not is_good or parts.query or parts.fragment:
            raise InputError(f"{text!r} is not the address of a server, wanted one like http://127.0.0.1:8080")
        url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        return cls(url, name or parts.netloc, key)

    @property
    def is_local(self) -> bool:
        return urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)


@dataclass
class Answer:
    """What came back; times are in seconds from when the request was sent. Status 0: no answer, `detail` says why."""

    status: int = 0
    detail: str = ""
    text: str = ""
    pieces: list[float] = field(default_factory=list)  # when each piece of the text came
    seconds: float = 0.0  # to the end of the answer
    prompt_tokens: int = 0
    generated_tokens: int = 0
    timings: Mapping[str, Any] = field(default_factory=dict)  # llama-server's, where the server gives them

    @property
    def is_good(self) -> bool:
        return self.status == 200 and not self.detail

    @property
    def first(self) -> float | None:
        """Seconds to the first piece of the text."""
        return self.pieces[0] if self.pieces else None


class Client:
    """A connection that is kept between requests. One thread at a time may use it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        parts = urlsplit(server.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = kind(parts.hostname or "", server.port, timeout=_SECONDS)
        self._path = parts.path
        self._headers = {"Content-Type": "application/json"}
        if server.key:
            self._headers["Authorization"] = f"Bearer {server.key}"

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str) -> Any:
        """The JSON value at a path. Raises InputError if the server gives none."""
        try:
            response = self._send("GET", path, None)
            data = response.read()
            if response.status == 200:
                return json.loads(data)
            found = f"status {response.status}: {_message(data)}"
        except (OSError, HTTPException, ValueError) as error:
            self.close()
            found = str(error) or type(error).__name__
        raise InputError(f"{self.server.url}{path}: {found}; wanted the JSON of an OpenAI-compatible server")

    def ask(self, body: Mapping[str, Any] | bytes, *, path: str = CHAT, leave_after: int | None = None) -> Answer:
        """Sends a request and reads its answer, streamed or whole; leaves after so many pieces if `leave_after` is set.

        A body of bytes is sent as it is. Nothing is raised: an answer that did not come or ended early says why.
        """
        answer = Answer()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        start = perf_counter()
        try:
            response = self._send("POST", path, data)
            answer.status = response.status
            if response.status != 200:
                answer.detail = _message(response.read())
            elif "event-stream" in (response.getheader("Content-Type") or ""):
                self._read_events(response, answer, start, leave_after)
            else:
                _take(answer, json.loads(response.read()), perf_counter() - start)
        except (OSError, HTTPException, ValueError) as error:
            answer.detail = str(error) or type(error).__name__
            self.close()
        answer.seconds = perf_counter() - start
        return answer

    def _send(self, method: str, path: str, body: bytes | None) -> HTTPResponse:
        try:
            self._connection.request(method, self._path + path, body, self._headers)
            return self._connection.getresponse()
        except (ConnectionError, HTTPException):  # a server may close a connection that was idle
            self.close()
            self._connection.request(method, self._path + path, body, self._headers)
            return self._connection.getresponse()

    def _read_events(self, response: HTTPResponse, answer: Answer, start: float, leave_after: int | None) -> None:
        is_whole = False
        while line := response.readline():
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                is_whole = True
                continue
            _take(answer, json.loads(data), perf_counter() - start)
            if leave_after is not None and len(answer.pieces) >= leave_after:
                self.close()
                return
        answer.generated_tokens = answer.generated_tokens or len(answer.pieces)  # of a server that gives no counts
        response.read()  # nothing; but only this frees the connection where the length was known
        if not is_whole and not answer.detail:
            answer.detail = "the answer ended before its last event"


def _take(answer: Answer, value: Mapping[str, Any], now: float) -> None:
    """Adds an event, or a whole answer, in the form of OpenAI's chat or completions."""
    if error := value.get("error"):
        answer.detail = str(error.get("message", error) if isinstance(error, Mapping) else error)
    for choice in value.get("choices") or ():
        part = choice.get("delta") or choice.get("message") or choice
        text = (part.get("reasoning_content") or "") + (part.get("content") or part.get("text") or "")
        answer.text += text
        if text:
            answer.pieces.append(now)
    if usage := value.get("usage"):
        answer.prompt_tokens, answer.generated_tokens = usage["prompt_tokens"], usage.get("completion_tokens") or 0
    answer.timings = value.get("timings") or answer.timings


def _message(data: bytes) -> str:
    """The message of an error in any of the shapes that servers have."""
    try:
        error = json.loads(data)
        error = error.get("error", error)
        return str(error.get("message", error) if isinstance(error, Mapping) else error)
    except (ValueError, AttributeError):
        return data[:200].decode("utf-8", "replace")
