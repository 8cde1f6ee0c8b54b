"""Runs the server until it is told to stop."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from lltool.engine.server.app import make_app
from lltool.engine.server.registry import Registry, Source
from lltool.engine.server.settings import ServerSettings
from lltool.gguf.errors import InputError


def serve(
    sources: Sequence[Source],
    settings: ServerSettings,
    *,
    ssl_keyfile: Path | None = None,
    ssl_certfile: Path | None = None,
    loaded: int = 1,
    ready: Callable[[str], None],
) -> None:
    """Loads the first `loaded` models and answers requests; `ready` is called with the address when it listens.

    SIGINT and SIGTERM end it: it takes no more requests, and those that run have `shutdown_seconds` to finish. Raises
    InputError if a model cannot be loaded, the port not be had, or the certificate not be used.
    """
    if ssl_certfile is not None:
        _check_certificate(ssl_certfile, ssl_keyfile)
    with listen(settings.host, settings.port) as listener:
        registry = Registry(sources, settings)
        try:
            for source in registry.sources[:loaded]:
                registry.load_now(source)
            config = uvicorn.Config(
                make_app(registry, settings),
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,  # uvicorn's is renewed ten times a second; log.py adds one to each answer
                lifespan="on",
                timeout_graceful_shutdown=settings.shutdown_seconds,
                ssl_keyfile=ssl_keyfile,
                ssl_certfile=ssl_certfile,
            )
            scheme = "https" if ssl_certfile else "http"
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
            _Server(config, lambda: ready(f"{scheme}://{shown}:{port}")).run(sockets=[listener])
        finally:
            registry.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"{host}, port {port}: cannot listen there: {error.strerror or error}; see --port") from None


def _check_certificate(certificate: Path, key: Path | None) -> None:
    """Raises InputError if the files are no certificate with its private key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # an SSLError is one
        reason = error.strerror or str(error)
        raise InputError(f"{certificate} and {key}: no certificate with its private key, both PEM: {reason}") from None


class _Server(uvicorn.Server):
    """uvicorn's server, which uses no processor time while nobody asks: its own loop looks ten times a second."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        if not self.should_exit:
            await self._stop.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
