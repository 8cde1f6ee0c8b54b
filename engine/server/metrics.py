"""GET /metrics for Prometheus, and GET /slots: what the server does and has done."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.server.job import Job
from lltool.engine.server.json_body import JsonResponse
from lltool.engine.server.registry import Registry

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """Counts of one server. `known` are the paths that have a row of their own."""

    def __init__(self, known: frozenset[str]) -> None:
        self._known = known
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"lltool_{name}", help, ["model"], buckets=buckets, registry=registry)

        def counter(name: str, help: str, labels: list[str]) -> Counter:
            return Counter(f"lltool_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str) -> Gauge:
            return Gauge(f"lltool_{name}", help, ["model"], registry=registry)

        self._requests = counter("requests", "Requests by path and status.", ["path", "status"])
        self._request_seconds = Histogram(
            "lltool_request_seconds", "From the request to the end of its answer.", ["path"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._prompt = counter("prompt_tokens", "Tokens of prompts, cached ones included.", ["model"])
        self._cached = counter("prompt_tokens_cached", "Tokens of prompts that were in the cache.", ["model"])
        self._generated = counter("generated_tokens", "Tokens generated.", ["model"])
        self._ended = counter("generations", "Generations by how they ended.", ["model", "reason"])
        self._queue = histogram("queue_seconds", "From the request to its first batch.", _SECONDS)
        self._first = histogram("first_token_seconds", "From the request to its first token.", _SECONDS)
        self._token = histogram("token_seconds", "Between two tokens of a text, on average.", _TOKEN_SECONDS)
        self._prompts = histogram("prompt_length_tokens", "Tokens of a prompt.", _TOKENS)
        self._answers = histogram("answer_length_tokens", "Tokens of an answer.", _TOKENS)
        self._running = gauge("requests_running", "Texts that are computed.")
        self._waiting = gauge("requests_waiting", "Texts that wait for room.")
        self._steps = gauge("batches_done", "Batches computed since the model was loaded.")
        self._pages = gauge("cache_pages_free", "Pages of the cache that nothing holds.")

    def observe(self, record: dict[str, Any], jobs: list[Job]) -> None:
        """Counts a request that is over."""
        path = record["path"] if record["path"] in self._known else "other"
        self._requests.labels(path, str(record["status"])).inc()
        self._request_seconds.labels(path).observe(record["seconds"])
        model = record.get("model", "")
        if not jobs and "prompt" in record:
            self._prompt.labels(model).inc(record["prompt"])
        for job in jobs:
            times = job.timings
            self._prompt.labels(model).inc(job.prompt_tokens)
            self._cached.labels(model).inc(times.cached)
            self._generated.labels(model).inc(times.tokens)
            self._ended.labels(model, job.reason or "cancelled").inc()
            self._prompts.labels(model).observe(job.prompt_tokens)
            if times.tokens:
                self._queue.labels(model).observe(job.queue_seconds)
                self._first.labels(model).observe(job.queue_seconds + times.first_token_seconds)
                self._answers.labels(model).observe(times.tokens)
            if times.tokens > 1:
                self._token.labels(model).observe(times.decode_seconds / (times.tokens - 1))

    def show(self, models: Registry) -> bytes:
        """Prometheus's text, with what is true now."""
        for each in (self._running, self._waiting, self._steps, self._pages):
            each.clear()
        for served in models.loaded:
            jobs = served.runner.jobs
            running = sum(job.sequence is not None for job in jobs)
            self._running.labels(served.name).set(running)
            self._waiting.labels(served.name).set(len(jobs) - running)
            self._steps.labels(served.name).set(served.runner.steps)
            self._pages.labels(served.name).set(served.model.free_pages)
        return generate_latest(self.registry)


async def metrics(request: Request) -> Response:
    state = request.app.state
    return Response(state.metrics.show(state.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def slots(request: Request) -> Response:
    """The texts that run or wait, and the free slots."""
    found: list[dict[str, Any]] = []
    for served in request.app.state.registry.loaded:
        jobs = served.runner.jobs
        for job in jobs:
            found.append(
                {
                    "id": job.slot,
                    "model": served.name,
                    "n_ctx": served.model.context,
                    "is_processing": job.sequence is not None,
                    "n_prompt_tokens": job.prompt_tokens,
                    "n_prompt_tokens_processed": min(job.evaluated, job.prompt_tokens),
                    "n_prompt_tokens_cache": job.shared,
                    "n_decoded": job.timings.tokens,
                }
            )
        for id in sorted(set(range(served.settings.parallel)) - {job.slot for job in jobs}):
            found.append({"id": id, "model": served.name, "n_ctx": served.model.context, "is_processing": False})
    return JsonResponse(found)
