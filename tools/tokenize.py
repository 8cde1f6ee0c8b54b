"""`lltool tokenize`: the tokens of a text."""

import sys
from pathlib import Path

from lltool.tools.arguments import command_parser, print_json, printable

EXAMPLES = """
lltool tokenize -m model.gguf -p "Hello world"
lltool tokenize -m model.gguf -f text.txt --ids --no-bos
lltool tokenize -m model.gguf --stdin --json < text.txt
"""


def main(argv: list[str]) -> int:
    parser = command_parser(
        "tokenize", "Shows the tokens of a text: id and piece, one a line.", EXAMPLES, json_flag=True
    )
    parser.add_argument("-m", "--model", type=Path, required=True, help="GGUF file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", help="the text")
    source.add_argument("-f", "--file", type=Path, help="a file with the text, UTF-8")
    source.add_argument("--stdin", action="store_true", help="read the text from standard input")
    parser.add_argument("--ids", action="store_true", help="only the ids, as a list: [1, 2, 3]")
    parser.add_argument("--no-bos", action="store_true", help="no begin token, even if the model wants one")
    parser.add_argument("--no-parse-special", action="store_true", help="take <|im_end|> and the like as plain text")
    parser.add_argument("--show-count", action="store_true", help="also print the number of tokens")
    arguments = parser.parse_args(argv)

    from lltool.engine.tokenizer import read_tokenizer
    from lltool.eval.text import read_text
    from lltool.gguf.reader import open_gguf

    if arguments.prompt is not None:
        text = arguments.prompt
    else:
        text = sys.stdin.read() if arguments.stdin else read_text(arguments.file)
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
