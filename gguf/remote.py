"""Files on a server, read in ranges of bytes over HTTP, so that a model need not be on the disk.

Reads are retried: what has arrived is kept, and the rest is asked for again. Larger windows come from chunks, of which
the next ones are fetched in the background.
"""

import http.client
import re
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np

from lltool import __version__
from lltool.gguf.errors import FileChanged, InputError
from lltool.gguf.source import Bytes

CHUNK = 8 << 20  # bytes
_AHEAD = 3  # chunks that are fetched before they are asked for
_KEPT = 12  # chunks in memory, of all files together
_SMALL = 256 << 10  # bytes; smaller windows are fetched as they are, unless their chunk is there
_PIECE = 256 << 10  # bytes that are received at a time
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 8  # in a row without a byte
_LONGEST_WAIT = 10.0  # seconds between attempts
_LATER = {408, 429, 500, 502, 503, 504}  # answers after which the same request may succeed


class Chunks:
    """The chunks in memory, and those on their way, of files that are read together."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[tuple[RemoteFile, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: "RemoteFile", number: int) -> bytes:
        """A chunk of a file; the next ones are fetched in the background."""
        last = (file.size - 1) // CHUNK
        with self._lock:
            for wanted in range(number, min(number + _AHEAD, last) + 1):
                key = (file, wanted)
                if key not in self._chunks or _has_failed(self._chunks[key]):
                    self._chunks[key] = _in_background(file.read, wanted * CHUNK, min((wanted + 1) * CHUNK, file.size))
                self._chunks.move_to_end(key)
            self._chunks.move_to_end((file, number))
            found = self._chunks[file, number]
            while len(self._chunks) > _KEPT:
                self._chunks.popitem(last=False)
        return found.result()

    def has(self, file: "RemoteFile", number: int) -> bool:
        with self._lock:
            return (file, number) in self._chunks


class RemoteFile:
    """A file at `url` of `size` bytes. `name` is for messages, and `headers` are sent with every request.

    `etag` identifies the content where the server says so. Reads raise InputError if the server is gone, does not give
    ranges, or contradicts itself, and FileChanged if the file has changed.
    """

    def __init__(
        self,
        name: str,
        url: str,
        headers: Mapping[str, str],
        size: int,
        etag: str,
        chunks: Chunks,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name, self.size, self.etag = name, size, etag
        self._url, self._headers, self._chunks, self._wait = url, headers, chunks, wait
        self._seen = ""  # the ETag of the first answer; the server that stores the file may have another than the Hub

    def window(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of the file."""
        if stop <= start:
            return np.empty(0, np.uint8)
        first, last = start // CHUNK, (stop - 1) // CHUNK
        if stop - start < _SMALL and not (first == last and self._chunks.has(self, first)):
            return np.frombuffer(self.read(start, stop), np.uint8)
        if first == last:
            return np.frombuffer(self._chunks.get(self, first), np.uint8)[start - first * CHUNK : stop - first * CHUNK]
        out = np.empty(stop - start, np.uint8)
        for number in range(first, last + 1):
            base = number * CHUNK
            begin, end = max(start, base), min(stop, base + CHUNK)
            chunk = np.frombuffer(self._chunks.get(self, number), np.uint8)
            out[begin - start : end - start] = chunk[begin - base : end - base]
        return out

    def check_unchanged(self) -> None:
        """Does nothing: every read compares what the server says of the file."""

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fetched from the server."""
        out, attempts = bytearray(), 0
        while len(out) < stop - start:
            before, pause = len(out), 0.0
            try:
                self._receive(start + len(out), stop, out)
                reason = "the answer ended early"
            except urllib.error.HTTPError as error:
                if error.code not in _LATER:
                    raise InputError(f"{self.name}: the server says {error.code} {error.reason}") from None
                reason, pause = f"the server says {error.code} {error.reason}", _retry_after(error.headers)
            except (OSError, http.client.HTTPException) as error:
                cause = error.reason if isinstance(error, urllib.error.URLError) else error
                reason = str(cause) or type(cause).__name__
            if len(out) == stop - start:
                break
            attempts = 0 if len(out) > before else attempts + 1
            if attempts >= _ATTEMPTS:
                raise InputError(
                    f"{self.name}: the server is gone after {start + len(out)} of {self.size} bytes, "
                    f"{attempts} attempts in a row failed ({reason}); try again later, with --resume to continue"
                )
            self._wait(max(pause, min(_LONGEST_WAIT, 0.25 * 2**attempts)))
        return bytes(out)

    def _receive(self, start: int, stop: int, out: bytearray) -> None:
        """Appends what arrives of bytes [start, stop) to `out`, at most all of them."""
        wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        agent = {"User-Agent": f"lltool/{__version__}"}
        request = urllib.request.Request(self._url, headers={**agent, **self._headers, **wanted})
        with _OPENER.open(request, timeout=_TIMEOUT) as response:
            self._check(response, start, stop)
            left = stop - start
            while left and (piece := response.read(min(_PIECE, left))):
                out += piece
                left -= len(piece)

    def _check(self, response: Any, start: int, stop: int) -> None:
        if response.status != 206:
            raise InputError(f"{self.name}: the server does not give parts of files; leave out --remote")
        etag = response.headers.get("ETag", "")
        if self._seen and etag and etag != self._seen:
            raise FileChanged(f"{self.name}: has changed on the server while it was read; begin again")
        self._seen = self._seen or etag
        stated = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", stated)
        if not found or (int(found[1]), int(found[2])) != (start, stop - 1) or found[3] not in ("*", str(self.size)):
            raise InputError(
                f"{self.name}: the server gave {stated or 'no Content-Range'}, wanted bytes {start}-{stop - 1} of "
                f"{self.size}; it contradicts itself, so fetch the file without --remote"
            )


class _WithoutToken(urllib.request.HTTPRedirectHandler):
    """Follows redirects; a token stays with the host that it is for."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


_OPENER = urllib.request.build_opener(_WithoutToken)


def _retry_after(headers: Any) -> float:
    """Seconds that the server asks to wait, at most a minute."""
    stated = headers.get("Retry-After", "")
    return min(60.0, float(stated)) if stated.isascii() and stated.isdigit() else 0.0


def _in_background(function: Callable[[int, int], bytes], start: int, stop: int) -> "Future[bytes]":
    """Runs a read in a thread that does not keep the process alive."""
    future: Future[bytes] = Future()

    def run() -> None:
        try:
            future.set_result(function(start, stop))
        except BaseException as error:  # belongs to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="range", daemon=True).start()
    return future


def _has_failed(future: "Future[bytes]") -> bool:
    return future.done() and future.exception() is not None
