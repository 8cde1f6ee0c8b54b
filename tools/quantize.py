"""`lltool quantize`: makes smaller GGUF files, with the same tensor bytes as llama-quantize's."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lltool.eval.common.quantities import SIZES, format_size, parse_size
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.text_file import read_text
from lltool.tools.arguments import (
    MODEL,
    add_model_arguments,
    checked,
    command_parser,
    find_named_model,
    folder_beside,
    pictures_place,
    print_json,
    words_with_model,
)
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note
from lltool.tools.target import add_target_options, quantize_to_target
from lltool.tools.terminal import printable

if TYPE_CHECKING:
    from lltool.quant.choose import Options
    from lltool.quant.plan import Plan, Request
    from lltool.quant.quantize import Report

EXAMPLES = """
lltool quantize model-F16.gguf Q4_K_M
lltool quantize --imatrix imatrix.gguf model-F16.gguf model-IQ3_M.gguf IQ3_M 8
lltool quantize model-F16.gguf Q4_K_M,Q5_K_M,Q8_0
lltool quantize --dry-run --tensor-type ffn_down=Q6_K model-F16.gguf Q4_K_S
lltool quantize --target 900MB --calibration text.txt --imatrix imatrix.gguf model-F16.gguf model-900MB.gguf
lltool quantize --show-recipe Q4_K_M > mine.toml && lltool quantize model-F16.gguf mine.toml
"""


COMMON_TYPES = "Q8_0, Q6_K, Q5_K_M, Q4_K_M (the usual choice), IQ4_XS or Q3_K_M"


def main(argv: list[str]) -> int:
    from lltool.gguf.reader import open_gguf
    from lltool.quant.choose import DEFAULTS
    from lltool.quant.plan import plan_quantization
    from lltool.quant.recipe_language import format_recipe
    from lltool.quant.recipes import find_recipe

    arguments = parser().parse_args(argv)
    arguments.words = words_with_model(arguments)
    if arguments.show_recipe:
        print(format_recipe(find_recipe(arguments.show_recipe)), end="")
        return 0
    options, request = _options(arguments), _request(arguments)
    if arguments.target:
        if options != DEFAULTS or arguments.recipe or arguments.dry_run:
            raise InputError(
                "--target chooses the types itself; leave out --dry-run, --recipe and options that set types"
            )
        return quantize_to_target(arguments.words, arguments, request)
    given = _read_positionals(arguments.words, arguments.recipe)
    source = find_named_model(given.source, offline=arguments.offline)
    if given.target is None and folder_beside(source) != source.parent:
        given = given._replace(target=str(folder_beside(source)))
    with open_gguf(source) as file:
        plans = [plan_quantization(file, type, options, request) for type in given.types]
        for plan in plans:
            for text in plan.notes:
                note(text)
            for line in _announcement(plan, arguments.dry_run or arguments.verbose):
                print(line, file=sys.stderr)
        if arguments.dry_run:
            _report_dry_run(plans, given, arguments)
        else:
            _write(plans, given, arguments)
    return 0


def parser() -> CommandParser:
    from lltool.quant.recipes import RECIPES

    types = "\n".join(
        f"  {'' if recipe.file_type is None else int(recipe.file_type):>2}  {recipe.name:<9}  {recipe.note}"
        for recipe in RECIPES.values()
    )
    parser = command_parser(
        "quantize",
        "Quantizes a GGUF model. Tensor bytes equal llama-quantize's.",
        EXAMPLES,
        json_flag=True,
        most_used="-m --imatrix --pure --tensor-type --allow-requantize --strict --dry-run --errors --target "
        "--calibration",
    )
    parser.details = f"types:\n{types}"
    add = parser.add_argument
    add_model_arguments(
        parser,
        "IN [OUT] TYPE[,TYPE...] [NTHREADS]",
        f"IN: the F16, BF16 or F32 model, {MODEL}; OUT: the file to write, or a folder, which several types need "
        f"(default: NAME-TYPE.gguf beside IN); TYPE: one such as {COMMON_TYPES}, or a recipe file; NTHREADS: number of "
        "threads",
    )
    add("--recipe", metavar="FILE", help="a recipe of your own, instead of TYPE")
    add("--show-recipe", metavar="TYPE", help="print a recipe in the form that --recipe takes, and exit")
    add("--imatrix", metavar="FILE", help="importance of the columns, from `lltool imatrix` or llama-imatrix")
    add(
        "--include-weights", metavar="PART", action="append", default=[], help="use importance only for names with PART"
    )
    add("--exclude-weights", metavar="PART", action="append", default=[], help="use no importance for names with PART")
    add("--pure", action="store_true", help="use one type for all matrices")
    add("--output-tensor-type", metavar="T", type=_ggml_type, help="the type of output.weight")
    add("--token-embedding-type", metavar="T", type=_ggml_type, help="the type of token_embd.weight")
    add("--leave-output-tensor", action="store_true", help="keep output.weight as it is")
    named: dict[str, Any] = {"dest": "tensor_types", "action": "extend", "default": []}
    add(
        "--tensor-type",
        metavar="REGEX=T",
        type=lambda text: [text],
        help="the type of tensors whose names match",
        **named,
    )
    add("--tensor-type-file", metavar="FILE", type=_read_words, help="a file of REGEX=T, separated by spaces", **named)
    add("--prune-layers", metavar="L,L,...", type=_layers, default=(), help="leave these blocks out")
    add("--override-kv", metavar="KEY=TYPE:VALUE", action="append", default=[], help="set a metadata key")
    add("--keep-split", action="store_true", help="write shards if IN has shards")
    add("--allow-requantize", action="store_true", help="allow tensors that are already quantized")
    add("--strict", action="store_true", help="fail if a shape does not allow the wanted type")
    memory = f"memory for a buffer of rows (default 80MiB); {SIZES}"
    add("--max-buffer-size", metavar="SIZE", type=checked(_buffer_size), default=80 << 20, help=memory)
    add("--force", action="store_true", help="replace a file of a default name even if it has another source")
    add("--dry-run", action="store_true", help="show types, sizes, memory and time, and write nothing")
    add("--errors", action="store_true", help="show each tensor's error; with --imatrix, weighted by importance")
    report = "write the errors of tensors and layers as a table and a plot"
    add("--report", type=pictures_place, metavar="DIR", help=report)
    add_target_options(add)
    add("-v", "--verbose", action="store_true", help="show each tensor")
    return parser


def _buffer_size(text: str) -> int:
    """A size of at least 1 MiB; llama-quantize, and this command before, took a bare number for MiB."""
    if (size := parse_size(text)) >= 1 << 20:
        return size
    raise InputError(f"{text!r} is {size} bytes, wanted at least 1MiB; a number without a unit is bytes, not MiB")


class _Positionals(NamedTuple):
    source: str
    target: str | None
    types: list[str]
    threads: int | None


def _read_positionals(given: Sequence[str], recipe: str | None) -> _Positionals:
    """Reads IN [OUT] TYPE [NTHREADS]; as in llama-quantize, the second argument is TYPE if it names a type."""
    from lltool.quant.recipes import find_recipe

    rest, target = list(given), None
    if recipe is not None:
        threads = [rest.pop()] if len(rest) > 1 and rest[-1].isdigit() else []
        rest = [*rest, recipe, *threads]
    if len(rest) > 2 and not _are_types(rest[1]):
        target = rest.pop(1)
    if not 2 <= len(rest) <= 3:
        raise InputError(f"found {' '.join(given)!r}, wanted IN [OUT] TYPE [NTHREADS]; see lltool quantize --help")
    source, types, *threads = rest
    if threads and not (threads[0].isascii() and threads[0].isdigit() and int(threads[0]) > 0):
        raise InputError(f"NTHREADS is {threads[0]!r}, wanted a whole number of at least 1")
    names = types.split(",") if recipe is None else [types]
    for name in names:
        find_recipe(name)
    return _Positionals(source, target, names, int(threads[0]) if threads else None)


def _are_types(text: str) -> bool:
    from lltool.quant.recipes import find_recipe

    try:
        for name in text.split(","):
            find_recipe(name)
    except InputError:
        return text.lower().endswith(".toml")  # an invalid recipe, whose error is raised later
    return True


def _options(arguments: argparse.Namespace) -> "Options":
    from lltool.quant.choose import Options

    return Options(
        arguments.pure,
        arguments.leave_output_tensor,
        arguments.output_tensor_type,
        arguments.token_embedding_type,
        tuple(map(_tensor_type, arguments.tensor_types)),
    )


def _request(arguments: argparse.Namespace) -> "Request":
    from lltool.quant.edits import parse_override
    from lltool.quant.guidance import read_guidance
    from lltool.quant.plan import Request

    include, exclude = arguments.include_weights, arguments.exclude_weights
    if include and exclude:
        raise InputError("--include-weights and --exclude-weights cannot be used together")
    if (include or exclude) and not arguments.imatrix:
        raise InputError("--include-weights and --exclude-weights select importance; give --imatrix too")
    return Request(
        read_guidance(arguments.imatrix, include, exclude) if arguments.imatrix else None,
        arguments.prune_layers,
        dict(parse_override(text) for text in arguments.override_kv),
        arguments.keep_split,
        arguments.allow_requantize,
        arguments.strict,
    )


def _ggml_type(text: str) -> GGMLType:
    from lltool.quant.codec import ENCODED

    for type in ENCODED:
        if type.name == text.upper():
            return type
    raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(t.name for t in sorted(ENCODED))}")


def _read_words(path: str) -> list[str]:
    return read_text(Path(path)).split()


def _tensor_type(text: str) -> tuple[str, GGMLType]:
    """Parses REGEX=T; as in llama-quantize, the expression is converted to lower case."""
    import re

    pattern, _, type = text.rpartition("=")
    try:
        if not pattern:
            raise argparse.ArgumentTypeError("wanted REGEX=TYPE")
        re.compile(pattern.lower())
        return pattern.lower(), _ggml_type(type)
    except (re.error, argparse.ArgumentTypeError) as error:
        raise InputError(f"tensor type {text!r}: {error}") from None


def _layers(text: str) -> tuple[int, ...]:
    if not all(part.isascii() and part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers")
    return tuple(map(int, text.split(",")))


def _announcement(plan: "Plan", with_tensors: bool) -> Iterator[str]:
    """Lines that say what is going to happen."""
    if with_tensors:
        for index, choice in enumerate(plan.choices, 1):
            tensor = choice.tensor
            shape = " x ".join(map(str, tensor.shape))
            change = tensor.type.name + (f" -> {choice.type.name}" if choice.type != tensor.type else "")
            yield f"[{index:4}/{len(plan.choices):4}] {printable(tensor.name):<40} {shape:>16}  {change}"
    for (before, after), count in plan.changes().items():
        yield f"{count:5} tensors {before.name}" + (f" -> {after.name}" if after != before else " kept")
    for label, size in (("model", plan.source_bytes), (plan.recipe.name, plan.bytes)):
        yield f"{label} size = {size / 2**20:9.2f} MiB ({8 * size / plan.weights:.2f} BPW)"


def _report_dry_run(plans: Sequence["Plan"], given: _Positionals, arguments: argparse.Namespace) -> None:
    from lltool.quant.plan import estimate_memory, estimate_seconds

    memory = estimate_memory(plans, arguments.max_buffer_size)
    seconds = estimate_seconds(plans, given.threads)
    if arguments.json:
        print_json(_one_or_all([{**_as_json(plan), "memory": memory, "seconds": seconds} for plan in plans]))
    else:
        print(f"memory at most {format_size(memory)}, time about {seconds:.1f} s, not counting the disk")


def _write(plans: Sequence["Plan"], given: _Positionals, arguments: argparse.Namespace) -> None:
    from lltool.quant.quantize import write_plans
    from lltool.tools.progress import progress_bar

    if given.target is not None and len(given.types) > 1 and not Path(given.target).is_dir():
        raise InputError(f"{given.target}: not a folder; with several types, OUT must be a folder")
    with progress_bar("B", ",".join(plan.recipe.name for plan in plans)) as show:
        reports = write_plans(
            plans,
            [given.target] * len(plans),
            threads=given.threads,
            buffer_bytes=arguments.max_buffer_size,
            with_errors=arguments.errors or bool(arguments.report),
            force=arguments.force,
            progress=show,
        )
    print(f"quantize time = {reports[0].seconds:.2f} s", file=sys.stderr)
    if arguments.report:
        from lltool.eval.selection.quantization_errors import write_error_report

        for path in write_error_report(reports, arguments.report):
            print(f"wrote {path}", file=sys.stderr)
    if arguments.json:
        print_json(_one_or_all([_as_json(report.plan, report) for report in reports]))
        return
    for report in reports:
        if arguments.errors:
            print("\n".join(_table(report)))
        print(report.path)


def _table(report: "Report") -> Iterator[str]:
    """A line for each tensor: its type, its size and its error."""
    from lltool.quant.plan import size_of

    for choice in report.plan.choices:
        lost = (report.errors or {}).get(choice.tensor.name)
        text = "" if lost is None else f"{lost:.6f}"
        yield f"{printable(choice.tensor.name):<40} {choice.type.name:<7} {size_of(choice):>12}  {text}".rstrip()


def _one_or_all(reports: list[dict[str, Any]]) -> Any:
    return reports[0] if len(reports) == 1 else reports


def _as_json(plan: "Plan", report: "Report | None" = None) -> dict[str, Any]:
    errors = report.errors if report and report.errors is not None else {}
    return {
        "path": str(report.path) if report else None,
        "file_type": plan.recipe.name,
        "pure": plan.options.pure,
        "weights": plan.weights,
        "source_bytes": plan.source_bytes,
        "bytes": plan.bytes,
        "bits_per_weight": plan.bits_per_weight,
        "notes": list(plan.notes),
        **({"seconds": report.seconds} if report else {}),
        "tensors": [
            {
                "name": choice.tensor.name,
                "shape": choice.tensor.shape,
                "from": choice.tensor.type.name,
                "type": choice.type.name,
                "wanted": choice.wanted.name,
                **({"error": errors[choice.tensor.name]} if choice.tensor.name in errors else {}),
            }
            for choice in plan.choices
        ],
    }
