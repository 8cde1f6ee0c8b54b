"""`lltool rerank`: how well documents answer a query."""

from lltool.tools.arguments import (
    add_model_arguments,
    command_parser,
    output_file,
    output_to,
    positive,
    print_json,
    take_model,
)
from lltool.tools.embed import add_size_arguments, add_text_arguments, named, read_texts, size_options
from lltool.tools.engine_arguments import add_engine_arguments, engine_options
from lltool.tools.parser import CommandParser
from lltool.tools.terminal import printable

EXAMPLES = """
lltool rerank -m bge-reranker-v2-m3-Q8_0.gguf -q "What is a panda?" -f documents.txt
lltool rerank -m model.gguf -q "What is a panda?" -d "A bear." -d "A car." --top 1
lltool rerank -m model.gguf -q "What is a panda?" -f documents.jsonl --json
"""


def parser() -> CommandParser:
    parser = command_parser(
        "rerank",
        "Scores documents by how well they answer a query, and prints them, the best first.",
        EXAMPLES,
        json_flag=True,
        most_used="--query -m -hf -d -f --top --probabilities --truncate -c -t",
        quiet=("--quiet",),  # -q is the query
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add("-q", "--query", required=True, metavar="TEXT", help="the query")
    add_text_arguments(parser, "-d", "--document", "a document; can be given several times")
    add("--top", type=positive, metavar="N", help="print the best N (default: all)")
    add(
        "--probabilities",
        action="store_true",
        help="scores from 0 to 1 of models whose classifier gives any number (default: the number)",
    )
    add("-o", "--output", type=output_file, metavar="FILE", help="write the result to FILE (default: print it)")
    add_size_arguments(parser)
    add_engine_arguments(parser, measures=True)
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    documents = read_texts(arguments)
    path = take_model(arguments)

    from lltool.engine.model import load_model
    from lltool.engine.rank import check_ranks, encode_pair, score_pairs
    from lltool.gguf.text_file import decode_argument

    query = decode_argument(arguments.query, "-q")
    with load_model(path, output="pooled", **size_options(arguments), **engine_options(arguments)) as model:
        check_ranks(model)
        pairs = []
        for listed in documents:
            with named(listed):
                pairs.append(encode_pair(model, query, listed.text, truncate=arguments.truncate))
        scores = score_pairs(model, pairs, probabilities=arguments.probabilities)
    order = (-scores).argsort(kind="stable").tolist()[: arguments.top]
    with output_to(arguments.output):
        if arguments.json:
            found = [{"index": i, "score": float(scores[i]), "text": documents[i].text} for i in order]
            print_json({"model": str(path), "query": query, "documents": found})
        else:
            for i in order:
                print(f"{scores[i]:9.4f}  {printable(documents[i].text)}")
    return 0
