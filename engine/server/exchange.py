"""A request and its answer over HTTP: its body, its jobs, and what happens when the client goes."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from time import perf_counter
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, RootModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lltool.engine.server.errors import ApiError, bad_request, error_body
from lltool.engine.server.fields import refuse_unsupported
from lltool.engine.server.job import Job
from lltool.engine.server.json_body import JsonResponse, dump_json, parse_json
from lltool.engine.server.registry import Registry
from lltool.engine.server.served import Served

F = TypeVar("F", bound=BaseModel)
_PING_SECONDS = 15.0  # of silence, after which a comment keeps proxies from closing a stream


async def read_fields(request: Request, kind: type[F]) -> F:
    """The checked body of a request. Raises ApiError for one that is too large, is not JSON, or lacks a field."""
    limit = request.app.state.settings.limits.body_bytes
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise ApiError(413, f"the body has more than {limit} bytes", code="body_too_large")
    try:
        value = parse_json(bytes(data))
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}", code="invalid_json") from None
    is_list = issubclass(kind, RootModel)
    if not isinstance(value, list if is_list else dict):
        raise bad_request(f"the body is no JSON {'list' if is_list else 'object'}", code="invalid_json")
    refuse_unsupported(value if isinstance(value, dict) else {}, getattr(kind, "UNSUPPORTED", {}))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in found["loc"])
        raise bad_request(f"{place}: {found['msg']}" if place else found["msg"], place.split(".")[0] or None) from None


class Exchange:
    """The model and the jobs of one request. `close` cancels what still runs, and lets the model go."""

    def __init__(self, request: Request, served: Served) -> None:
        self.request, self.served = request, served
        self.jobs: list[Job] = []
        self._begun = perf_counter()
        self._is_closed = False

    @classmethod
    async def begin(cls, request: Request, model: str | None) -> "Exchange":
        registry: Registry = request.app.state.registry
        served = await registry.acquire(model)
        request.state.model = served.name
        return cls(request, served)

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes it after an error; else the response does, when it has been sent."""
        if kind is not None:
            self.close()

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.label, job.template_seconds = self.request.state.id, perf_counter() - self._begun
        self.served.runner.submit(jobs)
        self.jobs += jobs
        self.request.state.jobs = self.jobs

    def count_tokens(self, count: int) -> None:
        """Says how many tokens a request that generates nothing is to read, for the log and the metrics."""
        self.request.state.tokens = count

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            for job in self.jobs:
                self.served.runner.cancel(job)
            self.request.app.state.registry.release(self.served)

    async def answer(self, work: Coroutine[Any, Any, Any]) -> Response:
        """The whole answer as JSON, unless the client goes before."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_wait_until_gone(self.request.receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return Response(status_code=499)  # which nobody reads, but the log
            return JsonResponse(task.result())
        finally:
            task.cancel()
            gone.cancel()
            self.close()

    def stream(self, events: AsyncIterator[bytes], media_type: str = "text/event-stream") -> "EventStream":
        return EventStream(self, events, media_type)


class EventStream(Response):
    """An answer that is sent as it is generated. It ends with an event for an error, as the status is sent already."""

    ERROR_EVENTS: ClassVar[Mapping[str, str]] = {"/v1/messages": "event: error\n", "/v1/responses": "event: error\n"}

    def __init__(self, exchange: Exchange, events: AsyncIterator[bytes], media_type: str) -> None:
        self.exchange, self.events, self.media_type = exchange, events, media_type
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_wait_until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send_events(scope["path"], gone, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            pass  # the client has gone
        finally:
            gone.cancel()
            self.exchange.close()

    async def _send_events(self, path: str, gone: "asyncio.Future[None]", send: Send) -> None:
        following: asyncio.Task[bytes] | None = None
        try:
            while not gone.done():
                following = following or asyncio.create_task(_following(self.events))
                waited: set[asyncio.Future[Any]] = {following, gone}
                await asyncio.wait(waited, timeout=_PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    data = b": waiting\n\n" if self.media_type == "text/event-stream" else b""
                else:
                    data, following = following.result(), None
                if data and not gone.done():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except StopAsyncIteration:
            return
        except ApiError as error:
            body = dump_json(error_body(path, error))
            is_lines = self.media_type != "text/event-stream"
            data = body + b"\n" if is_lines else self.ERROR_EVENTS.get(path, "").encode() + b"data: " + body + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            if following is not None:
                following.cancel()


async def _following(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(value: Any, name: str | None = None) -> bytes:
    """A server-sent event with JSON data."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + dump_json(value) + b"\n\n"
