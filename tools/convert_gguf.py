"""`lltool convert` of a GGUF file, which runs the pipe of `lltool quantize`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.eval.common.quantities import format_size
from lltool.gguf.errors import InputError
from lltool.gguf.hub import parse_hub_name
from lltool.tools.arguments import find_named_model, print_json
from lltool.tools.talk import note

if TYPE_CHECKING:
    from lltool.quant.convert.conversion import Wishes


def is_gguf(source: str) -> bool:
    """Whether the name means a GGUF file, on this machine or on the Hub."""
    path = Path(source)
    if path.exists():
        return path.is_file() and path.suffix == ".gguf"
    hub = parse_hub_name(source)
    return hub is not None and bool(hub.type or hub.file)


def convert_gguf(arguments: argparse.Namespace, wishes: "Wishes") -> int:
    from lltool.gguf.reader import open_gguf
    from lltool.quant.convert.from_gguf import buffer_within, plan_from_gguf, plan_from_gguf_to_size
    from lltool.quant.plan import estimate_memory, estimate_seconds
    from lltool.quant.quantize import write_plans
    from lltool.tools.progress import progress_bar

    if arguments.verify:
        raise InputError(f"{arguments.source}: --verify compares with a checkpoint; run lltool verify with its folder")
    if "auto" in arguments.outtype and arguments.target is None and arguments.outfile is None:
        raise InputError(f"{arguments.source}: is a GGUF file; say its new type (--outtype) or its new name (-o)")
    with open_gguf(find_named_model(arguments.source)) as file:
        if arguments.target is None:
            plans = plan_from_gguf(file, arguments.outtype, wishes)
        else:
            plans = [plan_from_gguf_to_size(file, arguments.target, wishes)]
        buffer = buffer_within(plans, arguments.max_memory)
        note(f"{file.path.name} is a GGUF file, which is converted as `lltool quantize` does; metadata is kept")
        for text in dict.fromkeys(text for plan in plans for text in plan.notes):
            note(text)
        targets = [arguments.outfile or Path()] * len(plans)
        for plan in plans:
            print(f"{plan.recipe.name}, {len(plan.choices)} tensors, {format_size(plan.bytes)}", file=sys.stderr)
        written: list[list[Path]] = [[] for _ in plans]
        more: dict[str, Any] = {}
        if arguments.dry_run:
            memory, seconds = estimate_memory(plans, buffer), estimate_seconds(plans, arguments.threads)
            print(
                f"memory at most {format_size(memory)}, time about {seconds:.1f} s besides the disk's", file=sys.stderr
            )
            more = {"memory": memory, "seconds": seconds}
        else:
            with progress_bar("B", ",".join(plan.recipe.name for plan in plans)) as show:
                reports = write_plans(
                    plans,
                    targets,
                    threads=arguments.threads,
                    buffer_bytes=buffer,
                    force=arguments.force,
                    shard_bytes=arguments.split_max_size,
                    resume=arguments.resume,
                    progress=show,
                    say=note,
                )
            written = [list(report.paths) for report in reports]
    if arguments.json:
        made = [
            {
                "paths": [str(path) for path in paths],
                "file_type": plan.recipe.name,
                "bytes": plan.bytes,
                "tensors": [
                    {"name": c.tensor.name, "shape": c.tensor.shape, "type": c.type.name} for c in plan.choices
                ],
                "notes": list(plan.notes),
                **more,
            }
            for plan, paths in zip(plans, written, strict=True)
        ]
        print_json(made[0] if len(made) == 1 else made)
    else:
        for path in (path for paths in written for path in paths):
            print(path)
    return 0
