"""`lltool recommend`: recommends a quantization of a model for this machine."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.eval.common.quantities import SIZES
from lltool.tools.arguments import (
    MODEL,
    add_model_arguments,
    byte_size,
    command_parser,
    find_named_model,
    folder_beside,
    output_file,
    positive,
    print_json,
    take_name,
)
from lltool.tools.parser import CommandParser
from lltool.tools.talk import note

if TYPE_CHECKING:
    from lltool.eval.selection.recommend import Recommendation

EXAMPLES = """
lltool recommend model-F16.gguf --ram 8G
lltool recommend model-F16.gguf --ram 6G --context 8192 --types Q6_K,Q5_K_M,Q4_K_M --prefer speed -f chat.txt
lltool recommend model-F16.gguf model-Q4_K_M.gguf model-Q3_K_M.gguf --types none
lltool recommend model-F16.gguf --pure --types Q8_0,Q5_1,Q5_0,Q4_1,Q4_0 -t 1,2 --report table.html
"""


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    arguments.model = find_named_model(take_name(arguments, more=True), offline=arguments.offline)
    others = [find_named_model(name, offline=arguments.offline) for name in arguments.words]

    from lltool.engine.cpu.threads import default_threads
    from lltool.engine.memory import available_memory
    from lltool.eval.common.text import SAMPLE_TEXT
    from lltool.eval.selection.recommend import DEFAULT_TYPES, Wishes, recommend
    from lltool.eval.selection.report import check_report, format_main, write_report
    from lltool.eval.selection.survey import Questions
    from lltool.gguf.errors import InputError
    from lltool.gguf.whole_file import make_folder
    from lltool.quant.choose import Options
    from lltool.quant.guidance import read_guidance
    from lltool.quant.plan import Request
    from lltool.tools.progress import progress_bar

    ram = arguments.ram or available_memory()
    if ram is None:
        raise InputError("the free memory of this system is unknown; give the memory for the model with --ram")
    folder = arguments.output or folder_beside(arguments.model) / f"{arguments.model.stem}-quants"
    page = arguments.report or folder / "report.html"
    make_folder(folder)
    check_report(page)
    with progress_bar("step") as progress:
        found = recommend(
            arguments.model,
            folder,
            Wishes(ram, arguments.context, arguments.prefer),
            types=DEFAULT_TYPES if arguments.types is None else arguments.types,
            others=others,
            options=Options(pure=arguments.pure),
            request=Request(
                guidance=read_guidance(arguments.imatrix, (), ()) if arguments.imatrix else None,
                allow_requantize=arguments.allow_requantize,
            ),
            questions=Questions(
                texts=tuple(arguments.file or (SAMPLE_TEXT,)),
                chunks=arguments.chunks,
                threads=tuple(arguments.threads or (default_threads(),)),
                prompt=arguments.n_prompt,
                generation=arguments.n_gen,
                repetitions=arguments.repetitions,
            ),
            say=note,
            progress=progress,
        )
    command = shlex.join(["lltool", "recommend", *argv])
    written = write_report(found.runs, page, f"Which {arguments.model.stem} to take", found.choice.reason, command)
    for text in found.runs.notes:
        note(text)
    if arguments.json:
        print_json(_as_json(found))
        return 0
    print(format_main(found.runs.entries))
    print(f"\n{found.choice.reason}\n")
    for path in (found.path, *written):
        print(path)
    return 0


def parser() -> CommandParser:
    parser = command_parser(
        "recommend",
        "Makes several quantizations of MODEL, measures size, loss and speed of each on this machine, and recommends "
        "one: the fastest that fits in memory and loses little. Files and measurements are kept and reused.",
        EXAMPLES,
        json_flag=True,
        most_used="-m -hf --ram -c --prefer --types --imatrix -f -o --report",
    )
    add = parser.add_argument
    add_model_arguments(
        parser, "MODEL [GGUF...]", f"the F16, BF16 or F32 model: {MODEL}; GGUF: existing quantizations of it"
    )
    add(
        "--ram",
        metavar="SIZE",
        type=byte_size,
        help=f"memory for the model (default: free memory); {SIZES}",
    )
    add("-c", "--ctx-size", "--context", dest="context", type=positive, help="context in tokens (default: 4096)")
    add("--prefer", choices=("quality", "balance", "speed"), default="balance", help="how much loss is too much")
    add("--types", type=_names, help="types to make, comma-separated, or none (default: seven from Q8_0 to Q3_K_M)")
    add("--pure", action="store_true", help="use one type for all matrices of a file")
    add("--imatrix", metavar="FILE", help="importance of the columns, from `lltool imatrix` or llama-imatrix")
    add("--allow-requantize", action="store_true", help="allow a MODEL that is already quantized")
    add("-f", "--file", type=Path, action="append", help="text to measure on; can be repeated (default: a sample)")
    add("--chunks", type=positive, help="number of windows of 512 tokens per text (default: all)")
    add("-t", "--threads", type=_counts, help="numbers of threads to time (default: one per core)")
    add("-p", "--n-prompt", type=positive, default=512, help="prompt length to time (default 512)")
    add("-n", "--n-gen", type=positive, default=64, help="number of generated tokens to time (default 64)")
    add("-r", "--repetitions", type=positive, default=5, help="timed runs of each (default 5)")
    add(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help="folder for files and results (default: MODEL-quants beside MODEL)",
    )
    add(
        "--report",
        metavar="FILE",
        type=output_file,
        help="page to write, as `lltool report` does (default: DIR/report.html)",
    )
    return parser


def _names(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _as_json(found: "Recommendation") -> dict[str, Any]:
    from lltool.eval.selection.report import as_records

    candidate = found.choice.candidate
    return {
        "choice": candidate.name,
        "path": str(found.path),
        "reason": found.choice.reason,
        "ram": found.ram,
        "context": found.context,
        "files": as_records(found.runs.entries),
        "notes": found.runs.notes,
    }
