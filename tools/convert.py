"""`lltool convert`: makes GGUF files from a checkpoint, an adapter or a GGUF file, quantized at once if wanted."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.eval.common.quantities import SIZES, format_size
from lltool.gguf.errors import InputError
from lltool.gguf.optional import require
from lltool.tools.arguments import byte_size, checked, command_parser, output_file, positive, print_json
from lltool.tools.convert_adapter import convert_adapter, is_adapter
from lltool.tools.convert_gguf import convert_gguf, is_gguf
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note

if TYPE_CHECKING:
    from lltool.quant.convert.conversion import Conversion, Wishes

EXAMPLES = """
lltool convert ./SmolLM2-135M-Instruct
lltool convert Qwen/Qwen3-0.6B -o qwen3.gguf --outtype Q4_K_M --imatrix imatrix.gguf
lltool convert Qwen/Qwen3-0.6B --outtype Q4_K_M,Q8_0
lltool convert Qwen/Qwen3-0.6B --target 500MB
lltool convert model-F16.gguf -o smaller.gguf --outtype Q5_K_M --split-max-size 2GB
lltool convert ./my-adapter -o adapter.gguf --base Qwen/Qwen3-0.6B
"""


def parser() -> CommandParser:
    about = "Makes GGUF files from a Hugging Face checkpoint, from a LoRA adapter, or from another GGUF file."
    parser = command_parser("convert", about, EXAMPLES, json_flag=True)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a checkpoint's or an adapter's folder, or its id on the Hub, or a GGUF file")
    add(
        *("-o", "--outfile"),
        type=_file_or_folder,
        help="GGUF file, or a folder, which several types need (default: NAME-TYPE.gguf in the current folder)",
    )
    add("--force", action="store_true", help="replace a file of a default name even if it has another source")
    add(
        "--outtype",
        type=checked(_types),
        metavar="TYPE[,TYPE...]",
        default=["auto"],
        help="types of the matrices, as for lltool quantize (default auto: the checkpoint's own); "
        "several are written in one pass",
    )
    add("--imatrix", metavar="FILE", help="importance of the columns, from `lltool imatrix` or llama-imatrix")
    add("--pure", action="store_true", help="use one type for all matrices")
    add("--target", type=byte_size, metavar="SIZE", help=f"the usual type whose file fits a size; {SIZES}")
    add("--allow-nonfinite", action="store_true", help="keep NaN and infinity, which are refused otherwise")
    add("--pre", metavar="NAME", help="tokenizer.ggml.pre, if the pre-tokenizer is not recognized")
    add("--split-max-size", metavar="SIZE", type=byte_size, help=f"largest size of a shard; {SIZES}")
    add("--max-memory", metavar="SIZE", type=byte_size, default=2 << 30, help="most memory to take (default 2GiB)")
    add("--resume", action="store_true", help="keep finished tensors if interrupted, and continue after those kept")
    add("-t", "--threads", type=positive, help="threads for quantizing (default: one per core)")
    add("--strict", action="store_true", help="fail if a shape does not allow the type")
    help = (
        "merge a LoRA adapter, a folder or an id on the Hub; SCALE multiplies its changes; can be given several times"
    )
    add("--lora", metavar="ADAPTER[:SCALE]", action="append", default=[], help=help)
    add("--base", metavar="MODEL", help="with an adapter: its base, a folder with config.json or an id on the Hub")
    add("--remote", action="store_true", help="read the weights from the Hub on the way, without a copy on the disk")
    add("--verify", action="store_true", help="compare each file with the checkpoint, as `lltool verify` does")
    add("--dry-run", action="store_true", help="show sizes, memory and time, and write nothing")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    if len(arguments.outtype) > 1 and arguments.outfile and not arguments.outfile.is_dir():
        raise InputError(f"{arguments.outfile}: not a folder; with several types, -o must be a folder")
    if arguments.target is not None and arguments.outtype != ["auto"]:
        raise InputError("--target chooses the type itself; leave out --outtype")
    if is_adapter(arguments.source):
        return convert_adapter(arguments)
    if arguments.base is not None:
        raise InputError(f"{arguments.source}: is no adapter, and --base is for adapters; leave it out")
    if is_gguf(arguments.source):
        return convert_gguf(arguments, _wishes(arguments))

    from lltool.engine.check_conversion import check_conversion
    from lltool.quant.convert.conversion import buffer_for, estimate_memory, write_conversions
    from lltool.quant.plan import estimate_seconds
    from lltool.tools.progress import progress_bar
    from lltool.tools.verify import verify_and_print

    if arguments.verify:
        require("transformers", "--verify")
        if arguments.lora:
            raise InputError("--verify compares with the checkpoint, from which --lora departs; leave out one of them")

    conversions = _plan(arguments, _wishes(arguments))
    buffer = buffer_for(conversions, arguments.max_memory)
    names = "tokenizer, names and shapes are the same for all types"
    assert all(len(c.model.tensors) == len(conversions[0].model.tensors) for c in conversions), names
    check_conversion(conversions[0])
    notes = [conversion.notes for conversion in conversions]
    for text in dict.fromkeys(text for texts in notes for text in texts):
        note(text)
    paths = [_path(arguments.outfile, conversion) for conversion in conversions]
    for path, conversion in zip(paths, conversions, strict=True):
        count = len(conversion.model.tensors)
        print(f"{path}: {conversion.type_name}, {count} tensors, {format_size(conversion.bytes)}", file=sys.stderr)
    written: list[list[Path]] = [[] for _ in conversions]
    more: dict[str, Any] = {}
    if arguments.dry_run:
        memory, seconds = estimate_memory(conversions, buffer), estimate_seconds(conversions, arguments.threads)
        print(f"memory at most {format_size(memory)}, time about {seconds:.1f} s besides the disk's", file=sys.stderr)
        more = {"memory": memory, "seconds": seconds}
    else:
        with progress_bar("B", ", ".join(path.name for path in paths)) as show:
            written = write_conversions(
                conversions,
                [arguments.outfile] * len(conversions),
                shard_bytes=arguments.split_max_size,
                buffer_bytes=buffer,
                force=arguments.force,
                resume=arguments.resume,
                progress=show,
                say=note,
            )
    code = 0
    if arguments.verify and not arguments.dry_run:
        with redirect_stdout(sys.stderr):  # the names of the files are the output
            code = max(verify_and_print(files[0], arguments.source) for files in written)
    if arguments.json:
        reports = [
            {
                "paths": [str(file) for file in files],
                "file_type": conversion.type_name,
                "bytes": conversion.bytes,
                "tensors": [{"name": t.name, "shape": t.shape, "type": t.type.name} for t in conversion.model.tensors],
                "notes": texts,
                **more,
            }
            for files, conversion, texts in zip(written, conversions, notes, strict=True)
        ]
        print_json(reports[0] if len(reports) == 1 else reports)
    else:
        for file in (file for files in written for file in files):
            print(file)
    return code


def _wishes(arguments: argparse.Namespace) -> "Wishes":
    from lltool.quant.choose import Options
    from lltool.quant.convert.conversion import Wishes
    from lltool.quant.convert.lora import open_adapter
    from lltool.quant.guidance import read_guidance

    return Wishes(
        pre=arguments.pre,
        strict=arguments.strict,
        options=Options(pure=arguments.pure),
        guidance=read_guidance(arguments.imatrix) if arguments.imatrix else None,
        allow_nonfinite=arguments.allow_nonfinite,
        remote=arguments.remote,
        adapters=[open_adapter(text) for text in arguments.lora],
    )


def _plan(arguments: argparse.Namespace, wishes: "Wishes") -> "Sequence[Conversion]":
    from lltool.quant.convert.conversion import plan_conversions, plan_to_size

    if arguments.target is None:
        return plan_conversions(arguments.source, arguments.outtype, wishes, threads=arguments.threads)
    return [plan_to_size(arguments.source, arguments.target, wishes, threads=arguments.threads)]


def _path(given: Path | None, conversion: "Conversion") -> Path:
    if given and not given.is_dir():
        return given
    return (given or Path()) / conversion.default_path()


def _file_or_folder(text: str) -> Path:
    return Path(text) if Path(text).is_dir() else output_file(text)


def _types(text: str) -> list[str]:
    from lltool.quant.recipes import find_recipe

    names = ["auto" if name.lower() == "auto" else name for name in text.split(",")]
    for name in names:
        if name != "auto":
            find_recipe(name)
    return names
