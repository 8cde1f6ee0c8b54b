"""What a server is told when it starts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ReasoningFormat = Literal["auto", "none"]


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for; each has a message of its own when it asks for more."""

    body_bytes: int = 4 << 20
    messages: int = 10_000
    stops: int = 64
    stop_characters: int = 1000
    choices: int = 128  # prompts times n
    top_logprobs: int = 100
    inputs: int = 2048  # texts of one request for embeddings
    seconds: float = 3600.0  # from its arrival to its last token


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server: the network, who may use it, and its limits. `load` are arguments of `load_model`."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: Sequence[str] = ()
    allowed_hosts: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    parallel: int = 4
    queue: int = 64  # requests that may wait while `parallel` are answered
    keep: int = 64  # texts that stay in the cache when they are over, as long as there is room
    limits: RequestLimits = field(default_factory=RequestLimits)
    load: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)  # in place of what the models' files ship
    chat_template: Path | None = None
    reasoning_format: ReasoningFormat = "auto"
    logs_prompts: bool = False
    trace: Path | None = None  # the file for a trace of what the scheduler does
    trace_bytes: int = 64 << 20  # its largest size
    page: Path | None = None  # the folder of the web page
    models_max: int = 4  # loaded at the same time; 0: no limit
    memory_budget: int | None = None  # bytes of all loaded models
    idle_seconds: float | None = None  # after which a model that nobody uses is unloaded
    slot_save_path: Path | None = None  # the folder of saved states; None: none are saved
    shutdown_seconds: int = 10  # for requests that run when the server is to stop

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")
