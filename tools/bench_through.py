"""`lltool bench --through URL`: the tests of the bench through running servers, and many clients of them at once."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lltool.gguf.errors import InputError
from lltool.tools.arguments import output_to
from lltool.tools.progress import progress_bar

if TYPE_CHECKING:
    from lltool.eval.bench.through.rows import ServedRow

CLIENT_TEST = (128, 64)  # tokens of a prompt and of an answer, where clients are asked for without a test


def bench_through(arguments: argparse.Namespace) -> int:
    """Measures and prints. Raises InputError for options that are about an engine in this process."""
    from lltool.eval.bench.machine.environment import describe_machine
    from lltool.eval.bench.run.plan import workloads
    from lltool.eval.bench.through.client import Server
    from lltool.eval.bench.through.measure import measure_through

    _check(arguments)
    servers = [Server.parse(text, arguments.api_key) for text in arguments.through + arguments.peer]
    if twice := [server.name for server in servers if [other.name for other in servers].count(server.name) > 1]:
        raise InputError(f"two servers are called {twice[0]!r}; name them, as in --through ours={servers[0].url}")
    given = bool(arguments.n_prompt or arguments.n_gen or arguments.pg)
    tests = workloads(
        arguments.n_prompt or (() if given or arguments.clients else (512,)),
        arguments.n_gen or (() if given or arguments.clients else (128,)),
        arguments.pg or ([CLIENT_TEST] if arguments.clients and not given else []),
        arguments.n_depth or (0,),
    )
    tests = [replace(test, sequences=count) for test in tests for count in arguments.clients or (1,)]
    with progress_bar("run") as progress:
        rows = measure_through(
            servers,
            tests,
            rounds=arguments.repetitions,
            long_prompt=arguments.long_prompt,
            warm=not arguments.no_warmup,
            machine=describe_machine(),
            progress=progress,
        )
    _report(rows, arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from lltool.eval.bench.settings import SETTINGS
    from lltool.tools.arguments import words_with_model

    if not arguments.through:
        raise InputError("--clients, --long-prompt and --api-key: want a server, as in --through http://127.0.0.1:8080")
    if words_with_model(arguments):
        raise InputError("--through measures the model that the server has; leave out the model")
    others = {"--profile": arguments.profile, "--autotune": arguments.autotune, "-npl": arguments.n_parallel}
    others |= {"--until": arguments.until, "--delay": arguments.delay, "--db": arguments.db}
    others |= {setting.options[0]: getattr(arguments, setting.name) for setting in SETTINGS}
    if found := [option for option, value in others.items() if value]:
        raise InputError(f"{found[0]}: is for a model in this process, not for --through; leave it out")
    if "sql" in (arguments.format, arguments.output_err):
        raise InputError("--format sql: has no table for --through; wanted md, csv, json or jsonl")


def _report(rows: "Sequence[ServedRow]", arguments: argparse.Namespace) -> None:
    from lltool.eval.bench.plots.served import plot_served
    from lltool.eval.bench.results.save import save_results
    from lltool.eval.bench.through.rows import format_served

    with output_to(arguments.output):
        print(format_served(rows, arguments.format), flush=True)
    if arguments.output_err:
        print(format_served(rows, arguments.output_err), file=sys.stderr)
    if arguments.plot:
        print(plot_served(rows, arguments.plot), file=sys.stderr)
    if arguments.save:
        show, draw = (lambda form: format_served(rows, form)), (lambda target: plot_served(rows, target))
        for path in save_results(arguments.save, show, draw):
            print(path, file=sys.stderr)
