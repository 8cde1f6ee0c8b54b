"""`lltool split`: cuts a GGUF file into several."""

from pathlib import Path

from lltool.eval.common.quantities import SIZES
from lltool.tools.arguments import byte_size, command_parser, positive, print_json
from lltool.tools.parser import CommandParser

EXAMPLES = """
lltool split model.gguf model --max-size 5G
lltool split model.gguf other --max-tensors 128
"""


def parser() -> CommandParser:
    parser = command_parser(
        "split",
        "Cuts a GGUF file into several, with llama.cpp's names and keys: OUT-00001-of-00003.gguf and so on.",
        EXAMPLES,
        json_flag=True,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=Path, help="a GGUF file, or any shard of a split model, which is split anew")
    add("output", metavar="OUT", type=Path, help="the files to write, without -00001-of-00003.gguf")
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--max-size", type=byte_size, help=f"the tensors of a file have at most so many bytes; {SIZES}")
    limit.add_argument("--max-tensors", type=positive, help="a file has at most so many tensors")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)

    from lltool.gguf.reader import open_gguf
    from lltool.gguf.writer import write_gguf
    from lltool.tools.progress import progress_bar

    output = arguments.output
    if output.suffix != ".gguf":
        output = output.with_name(f"{output.name}.gguf")
    with open_gguf(arguments.model) as file, progress_bar("B", output.name) as progress:
        written = write_gguf(
            output,
            file,
            shard_bytes=arguments.max_size,
            shard_tensors=arguments.max_tensors,
            progress=progress,
            has_room=True,
        )
    if arguments.json:
        print_json({"files": [{"path": str(path), "bytes": path.stat().st_size} for path in written]})
    else:
        print(*written, sep="\n")
    return 0
