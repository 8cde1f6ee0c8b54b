"""`lltool convert`: a Hugging Face checkpoint to GGUF."""

import sys
from pathlib import Path

from lltool.tools.arguments import byte_size, command_parser, positive

EXAMPLES = """
lltool convert ./SmolLM2-135M-Instruct
lltool convert Qwen/Qwen3-0.6B -o qwen3.gguf --outtype q8_0
"""


def main(argv: list[str]) -> int:
    from lltool.quant.convert import OUTTYPES

    parser = command_parser("convert", "Makes a GGUF file of a Hugging Face checkpoint.", EXAMPLES)
    parser.add_argument("source", metavar="DIR_OR_ID", help="a checkpoint's folder, or its id on the Hub")
    parser.add_argument("-o", "--outfile", type=Path, help="GGUF file (default: NAME-TYPE.gguf, here)")
    parser.add_argument(
        "--outtype", choices=OUTTYPES, default="auto", help="type of the matrices (default auto: the checkpoint's own)"
    )
    parser.add_argument("--pre", metavar="NAME", help="tokenizer.ggml.pre, where the pre-tokenizer is not a known one")
    parser.add_argument("--split-max-size", metavar="N[K|M|G]", type=byte_size, help="largest size of a shard")
    parser.add_argument("-t", "--threads", type=positive, help="threads for quantizing (default: one a core)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    arguments = parser.parse_args(argv)

    from lltool.gguf.writer import write_gguf
    from lltool.quant.convert import plan_conversion
    from lltool.tools.progress import progress_bar

    converted = plan_conversion(arguments.source, arguments.outtype, pre=arguments.pre, threads=arguments.threads)
    path = arguments.outfile or converted.default_path()
    tensors = converted.model.tensors
    for note in converted.notes:
        print(f"note: {note}", file=sys.stderr)
    size = sum(tensor.nbytes for tensor in tensors)
    print(f"{path}: {len(tensors)} tensors, {size:,} bytes, {converted.file_type.name}", file=sys.stderr)
    if arguments.dry_run:
        return 0
    with progress_bar("B", path.name) as show:
        written = write_gguf(path, converted.model, shard_bytes=arguments.split_max_size, progress=show)
    for file in written:
        print(file)
    return 0
