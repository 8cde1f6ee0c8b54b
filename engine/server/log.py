"""One line for each request: what it was, what it took, and how it ended. Prompts and answers are not in it."""

import json
import logging
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lltool.engine.server.job import Job
from lltool.engine.server.trace import Trace

log = logging.getLogger("lltool.server")
Observe = Callable[[dict[str, Any], list[Job]], None]
_QUIET = ("/health", "/v1/health", "/metrics")


class RequestLog:
    """Logs each request when its answer has been sent, with an id that the answer has as X-Request-Id."""

    def __init__(self, app: ASGIApp, observe: Observe, trace: Trace | None = None) -> None:
        self.app = app
        self.observe = observe
        self.trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        id, start = uuid4().hex[:16], time.perf_counter()
        state: dict[str, Any] = scope.setdefault("state", {})
        state["id"] = id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", id.encode()), (b"date", formatdate(usegmt=True).encode())]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            client = scope.get("client")
            record = {
                "id": id,
                "client": client[0] if client else "",
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "seconds": round(time.perf_counter() - start, 4),
            }
            jobs: list[Job] = state.get("jobs", [])
            record |= {"model": state["model"]} if "model" in state else {}
            record |= {"prompt": state["tokens"]} if "tokens" in state else {}
            record |= summarize(jobs) if jobs else {}
            self.observe(record, jobs)
            if self.trace is not None:
                self.trace.request(record, jobs, start, time.perf_counter())
            if scope["path"] not in _QUIET:
                log.info("%s", line(record))


def summarize(jobs: list[Job]) -> dict[str, Any]:
    """Counts and times of a request's jobs: tokens summed up, the longest of the times."""
    first = [job.queue_seconds + job.timings.first_token_seconds for job in jobs if job.timings.tokens]
    rates = [job.timings.decode_rate for job in jobs if job.timings.decode_rate]
    return {
        "prompt": sum(job.prompt_tokens for job in jobs),
        "cached": sum(job.timings.cached for job in jobs),
        "generated": sum(job.timings.tokens for job in jobs),
        "queue_seconds": round(max(job.queue_seconds for job in jobs), 4),
        "first_token_seconds": round(max(first), 4) if first else None,
        "tokens_per_second": round(min(rates), 2) if rates else None,
        "reason": ",".join(dict.fromkeys(job.reason or "cancelled" for job in jobs)),
    }


def line(record: dict[str, Any]) -> str:
    """The record as name=value; values with anything but plain letters are JSON texts."""
    return " ".join(f"{name}={_value(value)}" for name, value in record.items() if value not in (None, ""))


def _value(value: Any) -> str:
    text = str(value)
    plain = text.isascii() and text.isprintable() and not set(text) & {" ", '"', "="}
    return text if plain else json.dumps(text)
