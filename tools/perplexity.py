"""`lltool perplexity`: how well a model predicts a text."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from lltool.tools.arguments import command_parser, positive, print_json

EXAMPLES = """
lltool perplexity -m model.gguf -f text.txt
lltool perplexity -m model.gguf -f text.txt -c 512 --chunks 20 --json
"""


def main(argv: list[str]) -> int:
    parser = command_parser(
        "perplexity",
        "Measures perplexity on a text as llama-perplexity does: windows of -c tokens, the second half of each scored.",
        EXAMPLES,
        json_flag=True,
    )
    parser.add_argument("-m", "--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("-f", "--file", type=Path, required=True, help="text, UTF-8")
    parser.add_argument("-c", "--ctx-size", type=positive, default=512, help="tokens a window (default 512)")
    parser.add_argument("--chunks", type=positive, help="windows to take (default: all)")
    parser.add_argument("-b", "--batch-size", type=positive, default=512, help="tokens computed at once (default 512)")
    parser.add_argument("-t", "--threads", type=positive, help="threads (default: one a core)")
    parser.add_argument("--precision", choices=("int8", "f32"), default="int8", help="f32: exact, slower kernels")
    arguments = parser.parse_args(argv)

    from lltool import __version__
    from lltool.engine.model import load_model
    from lltool.eval.perplexity import METHOD, perplexity
    from lltool.eval.provenance import cpu_name
    from lltool.eval.text import read_text
    from lltool.gguf.digest import sha256_of

    text = read_text(arguments.file)
    context, batch = arguments.ctx_size, arguments.batch_size
    with load_model(
        arguments.model,
        context=context,
        sequences=max(1, min(batch, len(text.encode())) // context),  # no more windows than the text has
        batch=batch,
        threads=arguments.threads,
        precision=arguments.precision,
    ) as model:
        start = perf_counter()
        show = _RunningValues(context)
        name = str(arguments.file)
        result = perplexity(model, text, context=context, chunks=arguments.chunks, name=name, progress=show)
        seconds = perf_counter() - start
    if arguments.json:
        print_json(
            {
                "tool": f"lltool {__version__}",
                "method": METHOD,
                "model": str(arguments.model),
                "model_sha256": sha256_of(model.file.paths),
                "text": str(arguments.file),
                "text_sha256": sha256_of([arguments.file]),
                "context": context,
                "windows": len(result.running),
                "scored_tokens": result.scored,
                "perplexity": result.perplexity,
                "standard_error": result.error,
                "running": result.running,
                "precision": arguments.precision,
                "threads": model.threads,
                "batch": batch,
                "cpu": cpu_name(),
                "seconds": seconds,
            }
        )
    else:
        print(f"Final estimate: PPL = {result.perplexity:.4f} +/- {result.error:.5f}")
    return 0


@dataclass
class _RunningValues:
    """Prints the perplexity after each window as soon as it is known, as llama-perplexity does."""

    context: int
    shown: int = 0
    start: float = field(default_factory=perf_counter)

    def __call__(self, done: int, total: int, running: Sequence[float]) -> None:
        if not self.shown:
            seconds = (perf_counter() - self.start) * total / done
            print(f"{total} windows of {self.context} tokens, about {seconds:.0f} s", file=sys.stderr)
        values = ",".join(f"[{i}]{value:.4f}" for i, value in enumerate(running[self.shown :], self.shown + 1))
        print(values, file=sys.stderr, flush=True)
        self.shown = done
