"""`lltool tokenize`: the tokens of a text."""

from pathlib import Path

from lltool.tools.arguments import (
    add_escape_arguments,
    add_model_arguments,
    command_parser,
    print_json,
    read_standard_input,
    take_model,
)
from lltool.tools.parser import CommandParser
from lltool.tools.terminal import printable

EXAMPLES = """
lltool tokenize -m model.gguf -p "Hello\\nworld"
lltool tokenize -m model.gguf -f text.txt --ids --no-bos
lltool tokenize -m model.gguf --stdin --json < text.txt
"""


def parser() -> CommandParser:
    parser = command_parser(
        "tokenize", "Shows the tokens of a text, one per line: id and piece.", EXAMPLES, json_flag=True
    )
    add_model_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", help="the text")
    source.add_argument("-f", "--file", type=Path, help="a file with the text, UTF-8")
    source.add_argument("--stdin", action="store_true", help="read the text from standard input")
    parser.add_argument("--ids", action="store_true", help="print only the ids, as a list: [1, 2, 3]")
    parser.add_argument("--no-bos", action="store_true", help="add no begin token, even if the model wants one")
    parser.add_argument("--no-parse-special", action="store_true", help="treat <|im_end|> and the like as plain text")
    parser.add_argument("--show-count", action="store_true", help="also print the number of tokens")
    add_escape_arguments(parser, "-p")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)

    from lltool.engine.text.tokenizer import read_tokenizer
    from lltool.gguf.reader import open_gguf
    from lltool.gguf.text_file import decode_argument, read_prompt

    if arguments.prompt is not None:
        text = decode_argument(arguments.prompt, "-p", escapes=arguments.escape)
    else:
        text = read_standard_input() if arguments.stdin else read_prompt(arguments.file)
    arguments.model = take_model(arguments)
    with open_gguf(arguments.model) as file:
        tokenizer = read_tokenizer(file)
    ids = tokenizer.encode(text, add_special=not arguments.no_bos, parse_special=not arguments.no_parse_special)

    pieces = [tokenizer.piece(id).decode("utf-8", "backslashreplace") for id in ids]
    if arguments.json:
        tokens = [{"id": id, "piece": piece} for id, piece in zip(ids, pieces, strict=True)]
        print_json({"model": str(arguments.model), "count": len(ids), "tokens": tokens})
        return 0
    if arguments.ids:
        print(ids)
    else:
        for id, piece in zip(ids, pieces, strict=True):
            print(f"{id:6d} -> '{printable(piece)}'")
    if arguments.show_count:
        print(f"Total number of tokens: {len(ids)}")
    return 0
