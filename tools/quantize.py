"""`lltool quantize`: a smaller GGUF file, byte for byte what llama-quantize makes."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.tools.arguments import command_parser, print_json, printable

if TYPE_CHECKING:
    from lltool.quant.quantize import Plan

EXAMPLES = """
lltool quantize model-F16.gguf Q8_0
lltool quantize --pure model-F16.gguf model-Q4_0.gguf Q4_0 2
lltool quantize --dry-run model-F16.gguf Q5_1
"""


def main(argv: list[str]) -> int:
    from lltool.gguf.reader import open_gguf
    from lltool.quant.choose import Options
    from lltool.quant.quantize import plan_quantization, write_plan
    from lltool.tools.progress import progress_bar

    arguments = _parser().parse_intermixed_args(argv)
    source, target, type, threads = _positionals(arguments.arguments)
    options = Options(
        arguments.pure,
        arguments.leave_output_tensor,
        arguments.output_tensor_type,
        arguments.token_embedding_type,
    )
    with open_gguf(source) as file:
        plan = plan_quantization(
            file, type, options, allow_requantize=arguments.allow_requantize, strict=arguments.strict
        )
        for line in _announcement(plan, arguments.dry_run or arguments.verbose):
            print(line, file=sys.stderr)
        if not arguments.dry_run:
            path = target or plan.default_path()
            with progress_bar("B", plan.recipe.name) as show:
                report = write_plan(plan, path, threads=threads, progress=show)
            print(f"quantize time = {report.seconds:.2f} s", file=sys.stderr)
        if arguments.json:
            print_json(_as_json(plan, None if arguments.dry_run else str(path)))
        elif not arguments.dry_run:
            print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    from lltool.quant.recipes import RECIPES

    types = "\n".join(
        f"  {'' if recipe.file_type is None else int(recipe.file_type):>2}  {recipe.name:<9}  {recipe.note}"
        for recipe in RECIPES.values()
    )
    parser = command_parser(
        "quantize", "Quantizes a GGUF model. Tensor bytes equal llama-quantize's.", EXAMPLES, json_flag=True
    )
    parser.usage = "lltool quantize [options] IN [OUT] TYPE [NTHREADS]"
    parser.epilog = f"types:\n{types}\n\n{parser.epilog}"
    parser.add_argument(
        "arguments",
        metavar="IN [OUT] TYPE [NTHREADS]",
        nargs="+",
        help="the F16, BF16 or F32 file; what to write (default: ggml-model-TYPE.gguf beside it); type; threads",
    )
    parser.add_argument("--pure", action="store_true", help="one type for all matrices")
    parser.add_argument("--allow-requantize", action="store_true", help="also take tensors that are quantized already")
    parser.add_argument("--leave-output-tensor", action="store_true", help="keep output.weight as it is")
    parser.add_argument("--output-tensor-type", metavar="T", type=_ggml_type, help="the type of output.weight")
    parser.add_argument("--token-embedding-type", metavar="T", type=_ggml_type, help="the type of token_embd.weight")
    parser.add_argument("--strict", action="store_true", help="an error where a shape does not allow the type wanted")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, tensor by tensor")
    parser.add_argument("-v", "--verbose", action="store_true", help="show each tensor")
    return parser


def _positionals(given: Sequence[str]) -> tuple[str, str | None, str, int | None]:
    """IN [OUT] TYPE [NTHREADS]: as in llama-quantize, the second is TYPE if it names one."""
    from lltool.quant.recipes import find_recipe

    source, *rest = given
    target = None
    if len(rest) > 1 and not _names_recipe(rest[0]):
        target, *rest = rest
    if not rest or len(rest) > 2:
        raise InputError(f"{len(given)} arguments, wanted IN [OUT] TYPE [NTHREADS]")
    find_recipe(rest[0])
    if len(rest) == 2 and not (rest[1].isascii() and rest[1].isdigit() and int(rest[1]) > 0):
        raise InputError(f"NTHREADS is {rest[1]!r}, wanted a whole number of at least 1")
    return source, target, rest[0], int(rest[1]) if len(rest) == 2 else None


def _names_recipe(text: str) -> bool:
    from lltool.quant.recipes import find_recipe

    try:
        find_recipe(text)
    except InputError:
        return False
    return True


def _ggml_type(text: str) -> GGMLType:
    from lltool.quant.codec import ENCODED

    for type in ENCODED:
        if type.name == text.upper():
            return type
    raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(t.name for t in sorted(ENCODED))}")


def _announcement(plan: "Plan", with_tensors: bool) -> Iterator[str]:
    """What is going to happen, fallbacks first of all."""
    from lltool.quant.choose import describe_fallbacks

    for note in describe_fallbacks(plan.choices):
        yield f"note: {printable(note)}"
    if with_tensors:
        for index, choice in enumerate(plan.choices, 1):
            tensor = choice.tensor
            shape = " x ".join(map(str, tensor.shape))
            change = tensor.type.name + (f" -> {choice.type.name}" if choice.type != tensor.type else "")
            yield f"[{index:4}/{len(plan.choices):4}] {printable(tensor.name):<40} {shape:>16}  {change}"
    for (before, after), count in plan.changes().items():
        yield f"{count:5} tensors {before.name}" + (f" -> {after.name}" if after != before else " kept")
    for label, size in (("model", plan.source_bytes), ("quant", plan.bytes)):
        yield f"{label} size = {size / 2**20:9.2f} MiB ({8 * size / plan.weights:.2f} BPW)"


def _as_json(plan: "Plan", path: str | None) -> dict[str, Any]:
    return {
        "path": path,
        "file_type": plan.recipe.name,
        "pure": plan.options.pure,
        "weights": plan.weights,
        "source_bytes": plan.source_bytes,
        "bytes": plan.bytes,
        "bits_per_weight": plan.bits_per_weight,
        "tensors": [
            {
                "name": choice.tensor.name,
                "shape": choice.tensor.shape,
                "from": choice.tensor.type.name,
                "type": choice.type.name,
                "wanted": choice.wanted.name,
            }
            for choice in plan.choices
        ],
    }
