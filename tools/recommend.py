"""`lltool recommend`: which quantization of a model to take on this machine."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.tools.arguments import byte_size, command_parser, output_file, positive, print_json, printable

if TYPE_CHECKING:
    from lltool.eval.recommend import Recommendation

EXAMPLES = """
lltool recommend model-F16.gguf --ram 8G
lltool recommend model-F16.gguf --ram 6G --context 8192 --types Q6_K,Q5_K_M,Q4_K_M --prefer speed -f chat.txt
lltool recommend model-F16.gguf model-Q4_K_M.gguf model-Q3_K_M.gguf --types none
lltool recommend model-F16.gguf --pure --types Q8_0,Q5_1,Q5_0,Q4_1,Q4_0 -t 1,2 --report table.html
"""


def main(argv: list[str]) -> int:
    arguments = _parse(argv)

    from lltool.engine.threads import default_threads
    from lltool.eval.recommend import DEFAULT_TYPES, Wishes, recommend
    from lltool.eval.report import format_main, write_report
    from lltool.eval.survey import Questions, available_memory
    from lltool.eval.text import SAMPLE_TEXT
    from lltool.gguf.errors import InputError
    from lltool.quant.choose import Options
    from lltool.quant.guidance import read_guidance
    from lltool.quant.plan import Request
    from lltool.tools.progress import progress_bar

    ram = arguments.ram or available_memory()
    if ram is None:
        raise InputError("this system does not say how much memory is free; say with --ram how much there is")
    folder = arguments.output or arguments.model.with_name(f"{arguments.model.stem}-quants")
    page = arguments.report or folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar("step") as progress:
        found = recommend(
            arguments.model,
            folder,
            Wishes(ram, arguments.context, arguments.prefer),
            types=DEFAULT_TYPES if arguments.types is None else arguments.types,
            others=arguments.others,
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
            say=_note,
            progress=progress,
        )
    command = shlex.join(["lltool", "recommend", *argv])
    written = write_report(found.runs, page, f"Which {arguments.model.stem} to take", found.choice.reason, command)
    for note in found.runs.notes:
        _note(note)
    if arguments.json:
        print_json(_as_json(found))
        return 0
    print(format_main(found.runs.entries))
    print(f"\n{found.choice.reason}\n")
    for path in (found.path, *written):
        print(path)
    return 0


def _note(text: str) -> None:
    print(f"note: {printable(text)}", file=sys.stderr)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = command_parser(
        "recommend",
        "Makes several quantizations of MODEL, measures size, loss and speed of each on this machine, and says which "
        "to take: the fastest that fits in memory and loses little. What was made and measured is kept and used again.",
        EXAMPLES,
        json_flag=True,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=Path, help="the F16, BF16 or F32 file")
    add("others", metavar="GGUF", type=Path, nargs="*", help="quantizations of it that are there already")
    add("--ram", metavar="SIZE", type=byte_size, help="memory for the model, like 8G (default: what is free)")
    add(
        "-c", "--ctx-size", "--context", dest="context", type=positive, help="tokens that it is to hold (default: 4096)"
    )
    add("--prefer", choices=("quality", "balance", "speed"), default="balance", help="how much loss is too much")
    add("--types", type=_names, help="types to make, comma-separated, or none (default: seven from Q8_0 to Q3_K_M)")
    add("--pure", action="store_true", help="one type for all matrices of a file")
    add("--imatrix", metavar="FILE", help="importance of the columns, from `lltool imatrix` or llama-imatrix")
    add("--allow-requantize", action="store_true", help="also take a MODEL that is quantized already")
    add("-f", "--file", type=Path, action="append", help="text to measure on; can be given again (default: a sample)")
    add("--chunks", type=positive, help="windows of 512 tokens to take of each text (default: all)")
    add("-t", "--threads", type=_counts, help="numbers of threads to time (default: one a core)")
    add("-p", "--n-prompt", type=positive, default=512, help="prompt length to time (default 512)")
    add("-n", "--n-gen", type=positive, default=64, help="tokens to time the generation of (default 64)")
    add("-r", "--repetitions", type=positive, default=5, help="timed runs of each (default 5)")
    add("-o", "--output", metavar="DIR", type=Path, help="for files and results (default: MODEL-quants beside MODEL)")
    add(
        "--report",
        metavar="FILE",
        type=output_file,
        help="a page like that of `lltool report` (default: DIR/report.html)",
    )
    return parser.parse_intermixed_args(argv)


def _names(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _as_json(found: "Recommendation") -> dict[str, Any]:
    from lltool.eval.report import as_records

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
