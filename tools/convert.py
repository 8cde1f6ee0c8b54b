"""`lltool convert`: makes a GGUF file from a Hugging Face checkpoint."""

import sys
from pathlib import Path

from lltool.eval.common.quantities import SIZES, format_size
from lltool.tools.arguments import byte_size, command_parser, output_file, positive, print_json
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note

EXAMPLES = """
lltool convert ./SmolLM2-135M-Instruct
lltool convert Qwen/Qwen3-0.6B -o qwen3.gguf --outtype q8_0
"""


def parser() -> CommandParser:
    from lltool.quant.convert.conversion import OUTTYPES

    parser = command_parser("convert", "Makes a GGUF file from a Hugging Face checkpoint.", EXAMPLES, json_flag=True)
    add = parser.add_argument
    add("source", metavar="DIR_OR_ID", help="a checkpoint's folder, or its id on the Hub")
    add("-o", "--outfile", type=output_file, help="GGUF file (default: NAME-TYPE.gguf in the current folder)")
    add("--force", action="store_true", help="replace a file of the default name even if it has another source")
    add(
        "--outtype",
        type=str.lower,
        metavar="TYPE",
        choices=OUTTYPES,
        default="auto",
        help="type of the matrices, as for lltool quantize (default auto: the checkpoint's own)",
    )
    add("--pre", metavar="NAME", help="tokenizer.ggml.pre, if the pre-tokenizer is not recognized")
    add("--split-max-size", metavar="SIZE", type=byte_size, help=f"largest size of a shard; {SIZES}")
    add("-t", "--threads", type=positive, help="threads for quantizing (default: one per core)")
    add("--strict", action="store_true", help="fail if a shape does not allow the type")
    add("--dry-run", action="store_true", help="show what would be written, and write nothing")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)

    from lltool.engine.check_conversion import check_conversion
    from lltool.quant.convert.conversion import plan_conversion, write_conversion
    from lltool.tools.progress import progress_bar

    conversion = plan_conversion(
        arguments.source, arguments.outtype, pre=arguments.pre, strict=arguments.strict, threads=arguments.threads
    )
    check_conversion(conversion)
    notes = conversion.notes
    path = arguments.outfile or conversion.default_path()
    for text in notes:
        note(text)
    count = len(conversion.model.tensors)
    print(f"{path}: {conversion.file_type.name}, {count} tensors, {format_size(conversion.bytes)}", file=sys.stderr)
    written: list[Path] = []
    if not arguments.dry_run:
        with progress_bar("B", path.name) as show:
            written = write_conversion(
                conversion,
                arguments.outfile,
                shard_bytes=arguments.split_max_size,
                force=arguments.force,
                progress=show,
            )
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
