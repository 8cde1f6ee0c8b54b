"""`lltool export`: makes a Hugging Face checkpoint from a GGUF file."""

from pathlib import Path

from lltool.tools.arguments import MODEL, add_model_arguments, command_parser, positive, print_json, take_model
from lltool.tools.parser import CommandParser

EXAMPLES = """
lltool export model-Q4_K_M.gguf -o model-hf
lltool export model.gguf -o model-hf --dtype bf16
"""


def parser() -> CommandParser:
    from lltool.quant.convert.export import DTYPE_NAMES

    parser = command_parser("export", "Makes a Hugging Face checkpoint from a GGUF file.", EXAMPLES, json_flag=True)
    add = parser.add_argument
    add_model_arguments(parser, help=f"{MODEL}; any shard stands for a split model")
    add("-o", "--outdir", type=Path, required=True, help="folder to create")
    add("--dtype", choices=DTYPE_NAMES, default="auto", help="type of the weights (default auto: the file's, or f16)")
    add("-t", "--threads", type=positive, help="threads (default: one per core)")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    arguments.model = take_model(arguments)

    from lltool.quant.convert.checkpoint import open_checkpoint
    from lltool.quant.convert.export import export
    from lltool.tools.progress import progress_bar

    with progress_bar("B", arguments.outdir.name) as show:
        folder = export(arguments.model, arguments.outdir, arguments.dtype, threads=arguments.threads, progress=show)
    if arguments.json:
        checkpoint = open_checkpoint(folder)
        tensors = [checkpoint.tensor(name) for name in checkpoint.files]
        print_json(
            {
                "path": str(folder),
                "dtype": checkpoint.config["torch_dtype"],
                "bytes": sum(t.nbytes for t in tensors),
                "tensors": [{"name": t.name, "shape": t.shape, "type": t.type.name} for t in tensors],
            }
        )
    else:
        print(folder)
    return 0
