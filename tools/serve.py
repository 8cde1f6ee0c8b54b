"""`lltool serve`: answers requests over HTTP, as OpenAI's API and llama-server have them."""

import argparse
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lltool.gguf.errors import InputError
from lltool.gguf.optional import require
from lltool.gguf.text_file import read_lines
from lltool.gguf.whole_file import check_folder
from lltool.tools.arguments import (
    add_model_arguments,
    byte_size,
    command_parser,
    positive,
    take_models,
    words_with_model,
)
from lltool.tools.engine_arguments import add_engine_arguments, engine_options
from lltool.tools.parser import CommandParser
from lltool.tools.sampling_arguments import add_sampling_arguments, given_settings
from lltool.tools.talk import note

if TYPE_CHECKING:
    from lltool.engine.server.registry import Source
    from lltool.engine.server.settings import ServerSettings

EXAMPLES = """
lltool serve model.gguf
lltool serve -hf ggml-org/gemma-3-270m-it-GGUF:Q8_0 --port 9000 -c 8192 --parallel 8
lltool serve small.gguf large.gguf --alias small,large
lltool serve model.gguf --host 0.0.0.0 --api-key-file keys.txt --ssl-keyfile key.pem --ssl-certfile cert.pem
"""
MOST_USED = "-m -hf -a --host --port -c -np --api-key --api-key-file --chat-template-file --models-dir -t"


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    require("uvicorn", "lltool serve")
    from lltool.engine.server.serve import serve

    sources = _sources(arguments)
    settings = _settings(arguments)
    if (arguments.ssl_keyfile is None) != (arguments.ssl_certfile is None):
        raise InputError("--ssl-keyfile and --ssl-certfile belong together; one of them is missing")
    _log_to_stderr()
    serve(
        sources,
        settings,
        ssl_keyfile=arguments.ssl_keyfile,
        ssl_certfile=arguments.ssl_certfile,
        loaded=1 if words_with_model(arguments) else 0,
        ready=lambda address: note(f"listening on {address}; {_named(sources)}"),
    )
    return 0


def parser() -> CommandParser:
    parser = command_parser(
        "serve",
        "Answers requests over HTTP: OpenAI's API, llama-server's, and a web page to chat with the model.",
        EXAMPLES,
        most_used=MOST_USED,
    )
    add_model_arguments(parser, "MODEL")
    add = parser.add_argument
    add("-a", "--alias", metavar="NAMES", help="names of the models for requests, with commas between them")
    add("-c", "--ctx-size", type=positive, help="context of each request in tokens (default: the model's, to 4096)")
    add("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    add("-np", "--parallel", type=positive, default=4, help="full contexts that fit the cache at once (default 4)")
    add("--queue", type=positive, default=64, help="requests that may wait; more are refused (default 64)")
    add("--chat-template-file", type=Path, metavar="FILE", help="a Jinja template instead of the model's")
    add(
        "--reasoning-format",
        choices=("auto", "none"),
        default="auto",
        help="auto: the text in think tags apart, as reasoning_content; none: as the model writes it",
    )
    add("--precision", choices=("int8", "f32"), default="int8", help="f32: exact, slower kernels")
    add("-to", "--timeout", type=positive, default=3600, metavar="N", help="seconds for a request (default 3600)")
    add(
        "--lora-init-without-apply",
        action="store_true",
        help="adapters begin with the scale 0, until a request sets it",
    )
    models = parser.add_argument_group("several models").add_argument
    models("--models-dir", type=Path, metavar="FOLDER", help="offer all GGUF files of a folder, by their names")
    models("--models-max", type=_whole, default=4, metavar="N", help="models loaded at once; 0: no limit (default 4)")
    models("--memory-budget", type=byte_size, metavar="SIZE", help="memory for all loaded models, as 6GB")
    models(
        "--sleep-idle-seconds",
        type=int,
        default=-1,
        metavar="N",
        help="unload a model that nobody has used for so long (default -1: never)",
    )
    add(
        "--slot-save-path",
        type=Path,
        metavar="FOLDER",
        help="where requests may save the state of a text (default: not)",
    )
    add("--trace", type=Path, metavar="FILE", help="write what the scheduler does, for Perfetto or chrome://tracing")
    add("--trace-size", type=byte_size, default=64 << 20, metavar="SIZE", help="the largest trace (default 64 MiB)")
    add("--max-body", type=byte_size, default=4 << 20, metavar="SIZE", help="the largest request (default 4 MiB)")
    network = parser.add_argument_group("network and security").add_argument
    network("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1)")
    network("--port", type=_port, default=8080, help="the port; 0: any free one (default 8080)")
    network("--api-key", action="append", default=[], metavar="KEY", help="a key that requests must have")
    network("--api-key-file", type=Path, metavar="FILE", help="a file with a key on each line")
    network("--insecure", action="store_true", help="listen on another host than loopback without a key")
    network("--allowed-hosts", type=_names, default=[], metavar="NAMES", help="other names in the Host header")
    network("--cors-origins", type=_names, default=[], metavar="ORIGINS", help="pages that may use the server; *: all")
    network("--ssl-keyfile", "--ssl-key-file", type=Path, metavar="FILE", help="the private key for HTTPS, PEM")
    network("--ssl-certfile", "--ssl-cert-file", type=Path, metavar="FILE", help="the certificate for HTTPS, PEM")
    network("--no-page", "--no-ui", "--no-webui", action="store_true", help="no web page at /")
    add_sampling_arguments(parser)
    add_engine_arguments(parser)
    return parser


def _sources(arguments: argparse.Namespace) -> "list[Source]":
    """The models with their names: the stems of their files, or those of --alias."""
    from lltool.engine.server.registry import Source

    found = _models_in(arguments.models_dir) if arguments.models_dir is not None else []
    paths = take_models(arguments) if words_with_model(arguments) or not found else []
    aliases = _names(arguments.alias) if arguments.alias else []
    if len(paths) == 1 and not found:
        sources = [Source(paths[0], (*aliases, paths[0].stem))]
    elif aliases and len(aliases) != len(paths):
        raise InputError(f"--alias has {len(aliases)} names for {len(paths)} models, wanted one each")
    else:
        sources = [Source(path, (*aliases[i : i + 1], path.stem)) for i, path in enumerate(paths)]
    sources += [Source(path, (path.stem,)) for path in found if path not in paths]
    names = [source.name for source in sources]
    if arguments.lora and len(sources) > 1:
        raise InputError(f"--lora: adapters belong to one model, and {len(sources)} are served; serve it alone")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two models have the name {twice[0]!r}; give other ones with --alias")
    return sources


def _models_in(folder: Path) -> list[Path]:
    """The GGUF files of a folder, of a split model its first shard. Raises InputError if there is none."""
    if not folder.is_dir():
        raise InputError(f"--models-dir {folder}: wanted a folder")
    found = sorted(path for path in folder.glob("*.gguf") if path.is_file())
    later = re.compile(r"-(?!00001)\d{5}-of-\d{5}$")
    if not (found := [path for path in found if not later.search(path.stem)]):
        raise InputError(f"--models-dir {folder}: has no .gguf file")
    return found


def _named(sources: "list[Source]") -> str:
    names = [source.name for source in sources]
    return f"model {names[0]}" if len(names) == 1 else f"models {', '.join(names)}"


def _settings(arguments: argparse.Namespace) -> "ServerSettings":
    from lltool.engine.server.app import PAGE
    from lltool.engine.server.settings import RequestLimits, ServerSettings, is_loopback

    keys = [key for given in arguments.api_key for key in given.split(",") if key]
    if arguments.api_key_file is not None:
        lines = [line.strip() for line in read_lines(arguments.api_key_file)]
        keys += [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise InputError(f"{arguments.api_key_file}: has no key; wanted one on each line")
    if arguments.slot_save_path is not None:
        check_folder(arguments.slot_save_path)
    if not is_loopback(arguments.host) and not keys and not arguments.insecure:
        raise InputError(
            f"--host {arguments.host}: anyone who reaches this address could use the server; "
            "give it a key with --api-key-file, or --insecure if that is meant"
        )
    options = engine_options(arguments)
    if arguments.lora_init_without_apply:
        options["lora"] = [(path, 0.0) for path, _ in options["lora"]]
    return ServerSettings(
        host=arguments.host,
        port=arguments.port,
        api_keys=keys,
        allowed_hosts=arguments.allowed_hosts,
        cors_origins=arguments.cors_origins,
        parallel=arguments.parallel,
        queue=arguments.queue,
        limits=RequestLimits(body_bytes=arguments.max_body, seconds=arguments.timeout),
        load={
            "context": arguments.ctx_size,
            "batch": arguments.batch_size,
            "precision": arguments.precision,
            **options,
        },
        sampling=given_settings(arguments),
        chat_template=arguments.chat_template_file,
        trace=arguments.trace,
        trace_bytes=arguments.trace_size,
        reasoning_format=arguments.reasoning_format,
        models_max=arguments.models_max,
        memory_budget=arguments.memory_budget,
        idle_seconds=None if arguments.sleep_idle_seconds < 0 else arguments.sleep_idle_seconds,
        slot_save_path=arguments.slot_save_path,
        page=PAGE if PAGE.is_dir() and not arguments.no_page else None,
    )


def _log_to_stderr() -> None:
    """Prints the log of requests on stderr, where -q leaves it out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logger = logging.getLogger("lltool.server")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, wanted a number from 0 to 65535")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
