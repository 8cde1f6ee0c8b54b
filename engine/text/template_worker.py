"""The worker process that compiles and renders a chat template, which is untrusted code, within limits.

It runs as a script with the limits as arguments, and imports nothing from lltool, so that it starts fast. Each request
and each answer is its length (4 bytes, big endian) followed by JSON. The first request contains the template's source,
every later one the values to render it with.
"""

import json
import signal
import sys
from datetime import datetime
from typing import Any, BinaryIO, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_LONGEST_MESSAGE = 1000  # characters

# The exceptions that templates raise. Any other one ends the process, which the parent reports too.
_FAILURES = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def main() -> int:
    processor_seconds, memory, output = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _limit(memory)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _write_frame(answers, b"{}")
    template: Template | None = None
    while (data := _read_frame(requests)) is not None:
        _start_clock(processor_seconds)
        try:
            request = json.loads(data)
            if template is None:
                template = _environment().from_string(request["source"])
                answer: dict[str, Any] = {"text": ""}
            else:
                answer = {"text": _render(template, request["values"], request["date"], output)}
            encoded = json.dumps(answer).encode()
        except MemoryError:
            encoded = json.dumps({"error": f"needs more than {memory >> 20} MiB of memory", "is_last": True}).encode()
        except _FAILURES as error:
            encoded = json.dumps(_report(error)).encode()
        _start_clock(0)
        _write_frame(answers, encoded)
    return 0


def _read_frame(stream: BinaryIO) -> bytes | None:
    """Reads the next request; None if there is no complete one."""
    head = stream.read(4)
    size = int.from_bytes(head, "big")
    data = stream.read(size)
    return data if len(head) == 4 and len(data) == size else None


def _write_frame(stream: BinaryIO, data: bytes) -> None:
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()


def _limit(memory: int) -> None:
    """Limits memory to `memory` bytes and disables core files; systems without such limits rely on the clock."""
    try:
        import resource
    except ImportError:
        return
    for kind, wanted in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # macOS does not accept a memory limit
            continue


def _start_clock(seconds: float) -> None:
    """Makes SIGPROF end the process after `seconds` more of processor time; 0 stops the clock."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _render(template: Template, values: dict[str, Any], date: str | None, output: int) -> str:
    if date is not None:
        values = {"strftime_now": lambda _: date, **values}
    parts, size = [], 0
    for part in template.generate(values):
        parts.append(part)
        size += len(part) if part.isascii() else len(part.encode("utf-8", "surrogatepass"))
        if size > output:
            raise ValueError(f"writes more than {output >> 20} MiB")
    return "".join(parts)


def _report(error: BaseException) -> dict[str, Any]:
    message = str(error) or type(error).__name__
    if isinstance(error, TemplateSyntaxError):
        return {"error": (error.message or message)[:_LONGEST_MESSAGE], "line": error.lineno}
    if isinstance(error, RecursionError):
        message = f"its expressions or macros are nested too deeply ({message})"
    return {"error": message[:_LONGEST_MESSAGE], "line": _failing_line(error)}


def _failing_line(error: BaseException) -> int | None:
    """The innermost template line in the traceback of `error`, in which Jinja puts the template's own line numbers."""
    line = None
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _environment() -> ImmutableSandboxedEnvironment:
    """A Jinja environment set up as in transformers, so that templates written for it give the same text."""

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it just renders its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class _Dict:
    """`dict` for templates, without access to the class itself."""

    def __call__(self, *values: Any, **more: Any) -> dict[Any, Any]:
        return dict(*values, **more)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class _Namespace(Namespace):
    """`namespace` for templates; it refuses names with a leading underscore, which would give access to Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, found {name!r}")


if __name__ == "__main__":
    sys.exit(main())
