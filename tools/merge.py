"""`lltool merge`: makes one GGUF file from its shards."""

from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.tools.arguments import command_parser, output_file, print_json
from lltool.tools.parser import CommandParser

EXAMPLES = """
lltool merge model-00001-of-00003.gguf model.gguf
"""


def parser() -> CommandParser:
    parser = command_parser("merge", "Makes one GGUF file from the shards of a split model.", EXAMPLES, json_flag=True)
    parser.add_argument("model", metavar="SHARD", type=Path, help="any of the shards; the others lie beside it")
    parser.add_argument("output", metavar="OUT", type=output_file, help="the file to write")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)

    from lltool.gguf.reader import open_gguf
    from lltool.gguf.writer import write_gguf
    from lltool.tools.progress import progress_bar

    with open_gguf(arguments.model) as file:
        if len(file.paths) == 1:
            raise InputError(f"{arguments.model}: is not split, so there is nothing to merge")
        with progress_bar("B", arguments.output.name) as progress:
            write_gguf(arguments.output, file, progress=progress, has_room=True)
        shards = len(file.paths)
    if arguments.json:
        path = arguments.output
        print_json({"path": str(path), "bytes": path.stat().st_size, "shards": shards})
    else:
        print(arguments.output)
    return 0
