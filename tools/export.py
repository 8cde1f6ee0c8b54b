"""`lltool export`: GGUF to a Hugging Face checkpoint."""

from pathlib import Path

from lltool.tools.arguments import command_parser, positive, print_json

EXAMPLES = """
lltool export model-Q4_K_M.gguf -o model-hf
lltool export model.gguf -o model-hf --dtype bf16
"""


def main(argv: list[str]) -> int:
    from lltool.gguf.checkpoint import open_checkpoint
    from lltool.quant.export import DTYPE_NAMES, export
    from lltool.tools.progress import progress_bar

    parser = command_parser("export", "Makes a Hugging Face checkpoint of a GGUF file.", EXAMPLES, json_flag=True)
    parser.add_argument("model", metavar="MODEL", type=Path, help="GGUF file; of a split model, any shard")
    parser.add_argument("-o", "--outdir", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--dtype", choices=DTYPE_NAMES, default="auto", help="type of the weights (default auto: the file's, or f16)"
    )
    parser.add_argument("-t", "--threads", type=positive, help="threads (default: one a core)")
    arguments = parser.parse_args(argv)
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
