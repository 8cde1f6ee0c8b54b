"""`lltool convert`: a Hugging Face checkpoint to GGUF."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lltool.tools.arguments import byte_size, command_parser, positive, print_json

if TYPE_CHECKING:
    from lltool.quant.convert import Conversion

EXAMPLES = """
lltool convert ./SmolLM2-135M-Instruct
lltool convert Qwen/Qwen3-0.6B -o qwen3.gguf --outtype q8_0
"""


def main(argv: list[str]) -> int:
    from lltool.quant.convert import OUTTYPES

    parser = command_parser("convert", "Makes a GGUF file of a Hugging Face checkpoint.", EXAMPLES, json_flag=True)
    parser.add_argument("source", metavar="DIR_OR_ID", help="a checkpoint's folder, or its id on the Hub")
    parser.add_argument("-o", "--outfile", type=Path, help="GGUF file (default: NAME-TYPE.gguf, here)")
    parser.add_argument(
        "--outtype",
        type=str.lower,
        metavar="TYPE",
        choices=OUTTYPES,
        default="auto",
        help="type of the matrices, one of lltool quantize's (default auto: the checkpoint's own)",
    )
    parser.add_argument("--pre", metavar="NAME", help="tokenizer.ggml.pre, where the pre-tokenizer is not a known one")
    parser.add_argument("--split-max-size", metavar="N[K|M|G]", type=byte_size, help="largest size of a shard")
    parser.add_argument("-t", "--threads", type=positive, help="threads for quantizing (default: one a core)")
    parser.add_argument("--strict", action="store_true", help="fail where a shape does not allow the type")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    arguments = parser.parse_args(argv)

    from lltool.quant.convert import plan_conversion, write_conversion
    from lltool.tools.progress import progress_bar

    conversion = plan_conversion(
        arguments.source, arguments.outtype, pre=arguments.pre, strict=arguments.strict, threads=arguments.threads
    )
    path = arguments.outfile or conversion.default_path()
    notes = [*conversion.notes, *_compare_tokenizers(conversion)]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    count = len(conversion.model.tensors)
    print(f"{path}: {conversion.file_type.name}, {count} tensors, {conversion.bytes:,} bytes", file=sys.stderr)
    written: list[Path] = []
    if not arguments.dry_run:
        with progress_bar("B", path.name) as show:
            written = write_conversion(conversion, path, shard_bytes=arguments.split_max_size, progress=show)
    if arguments.json:
        tensors = [{"name": t.name, "shape": t.shape, "type": t.type.name} for t in conversion.model.tensors]
        print_json(
            {
                "paths": [str(file) for file in written],
                "file_type": conversion.file_type.name,
                "bytes": conversion.bytes,
                "tensors": tensors,
                "notes": notes,
            }
        )
    else:
        for file in written:
            print(file)
    return 0


def _compare_tokenizers(conversion: "Conversion") -> list[str]:
    """What the file's tokenizer does otherwise than the checkpoint's, if there is a tokenizer.json to try."""
    from lltool.engine.tokenizer import Tokenizer
    from lltool.engine.tokenizer_check import compare_tokenizers

    path = conversion.checkpoint.path / "tokenizer.json"
    if not path.exists():
        return []
    difference = compare_tokenizers(Tokenizer.from_gguf(conversion.model.metadata), path)
    return [f"the tokenizer does not become quite the same: {difference}"] if difference else []
