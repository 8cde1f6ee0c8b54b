"""`lltool perplexity`: how well a model predicts a text."""

import sys
from collections.abc import Sequence
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

    from tqdm import tqdm

    from lltool import __version__
    from lltool.engine.model import load_model
    from lltool.eval.perplexity import METHOD, perplexity
    from lltool.eval.provenance import cpu_name, file_sha256
    from lltool.eval.text import read_text

    text = read_text(arguments.file)
    context, batch = arguments.ctx_size, arguments.batch_size
    with (
        load_model(
            arguments.model,
            context=context,
            sequences=max(1, min(batch, len(text.encode())) // context),  # no more windows than the text has
            batch=batch,
            threads=arguments.threads,
            precision=arguments.precision,
        ) as model,
        tqdm(unit="window", disable=None, file=sys.stderr) as bar,
    ):

        def show(done: int, total: int, running: Sequence[float]) -> None:
            bar.total = total
            bar.set_postfix_str(f"PPL {running[-1]:.4f}", refresh=False)
            bar.update(done - bar.n)

        start = perf_counter()
        result = perplexity(model, text, context=context, chunks=arguments.chunks, progress=show)
        seconds = perf_counter() - start
    print(",".join(f"[{i + 1}]{value:.4f}" for i, value in enumerate(result.running)), file=sys.stderr)
    if arguments.json:
        print_json(
            {
                "tool": f"lltool {__version__}",
                "method": METHOD,
                "model": str(arguments.model),
                "model_sha256": file_sha256(arguments.model),
                "text": str(arguments.file),
                "text_sha256": file_sha256(arguments.file),
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
