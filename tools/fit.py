"""`lltool fit`: tells whether a model fits in memory."""

from typing import get_args

from lltool.tools.arguments import add_model_arguments, command_parser, positive, print_json, take_name
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note

EXAMPLES = """
lltool fit model.gguf
lltool fit model.gguf -c 32768 --parallel 4 -ctk q8_0 -ctv q8_0
lltool fit Qwen/Qwen3-0.6B --outtype Q4_K_M
"""


def parser() -> CommandParser:
    from lltool.engine.batch import CacheType

    parser = command_parser(
        "fit",
        "Tells how much memory a model takes, from its header, and the largest context that fits this machine. "
        "Of a model on the Hub, only headers are fetched; a checkpoint is taken as `lltool convert` would make it. "
        "The exit code is 1 if the model does not fit.",
        EXAMPLES,
        json_flag=True,
    )
    add = parser.add_argument
    add_model_arguments(parser)
    add("--outtype", default="auto", metavar="TYPE", help="type of a checkpoint's matrices (default: its own)")
    add("-c", "--ctx-size", type=positive, metavar="N", help="tokens of context (default: the model's, at most 4096)")
    add("-np", "--parallel", type=positive, default=1, metavar="N", help="sequences at the same time (default 1)")
    add("-b", "--batch-size", type=positive, default=512, metavar="N", help="tokens computed at once (default 512)")
    add("-t", "--threads", type=positive, metavar="N", help="threads (default: one per core)")
    for flag, letter, what in (("-ctk", "k", "keys"), ("-ctv", "v", "values")):
        help = f"how the cache holds {what} (default f16)"
        add(flag, f"--cache-type-{letter}", choices=get_args(CacheType), default="f16", help=help)
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    name = take_name(arguments)

    from lltool.engine.cpu.threads import default_threads
    from lltool.engine.memory import MemoryModel, available_memory
    from lltool.engine.model import DEFAULT_CONTEXT
    from lltool.eval.common.tables import align_columns
    from lltool.eval.selection.unfetched import open_header
    from lltool.gguf.errors import InputError

    with open_header(name, arguments.outtype, offline=arguments.offline, say=note) as known:
        try:
            model = MemoryModel(known.source, known.bytes)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        options = {
            "sequences": arguments.parallel,
            "batch": arguments.batch_size,
            "threads": arguments.threads or default_threads(),
            "cache_type_k": arguments.cache_type_k,
            "cache_type_v": arguments.cache_type_v,
        }
        limit = model.config.context_length
        context = arguments.ctx_size or min(limit, DEFAULT_CONTEXT)
        if context > limit:
            raise InputError(f"-c {context}: {name} was made for at most {limit} tokens")
        need = model.need(context, **options)
        available = available_memory()
        largest = None if available is None else model.largest_context(available, **options)
    fits = available is None or need.total <= available
    if arguments.json:
        parts = {name: getattr(need, name) for name in ("weights", "cache", "work", "process", "total")}
        print_json({"context": context, **parts, "available": available, "largest_context": largest, "fits": fits})
        return 0 if fits else 1
    rows = [
        ("weights", need.weights, "the file"),
        ("cache", need.cache, f"{context * arguments.parallel:,} tokens"),
        ("work", need.work, f"batches of {arguments.batch_size}"),
        ("process", need.process, "Python and libraries"),
        ("total", need.total, "at most"),
    ]
    shown = [(name, f"{size / 2**20:,.1f} MiB", what) for name, size, what in rows]
    for row in align_columns(shown, left=[True, False, True]):
        print("  ".join(row).rstrip())
    if available is not None:
        verdict = "fits" if fits else "does not fit"
        print(f"{verdict}: {available / 2**20:,.1f} MiB are available, enough for a context of {largest:,} tokens")
    return 0 if fits else 1
