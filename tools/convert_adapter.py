"""`lltool convert` of a LoRA adapter of peft, which makes a GGUF adapter."""

import argparse
import sys
from pathlib import Path

from lltool.eval.common.quantities import format_size
from lltool.gguf.errors import InputError
from lltool.tools.arguments import print_json


def is_adapter(source: str) -> bool:
    """Whether the name means the folder of an adapter; one with a whole model in it is a checkpoint."""
    path = Path(source)
    return (path / "adapter_config.json").exists() and not (path / "config.json").exists()


def convert_adapter(arguments: argparse.Namespace) -> int:
    from lltool.quant.convert.adapter_file import OUTTYPES, plan_adapter, write_adapter
    from lltool.quant.convert.lora import open_adapter

    options = {
        "--lora": arguments.lora,
        "--imatrix": arguments.imatrix,
        "--target": arguments.target,
        "--split-max-size": arguments.split_max_size,
        "--pre": arguments.pre,
        "--verify": arguments.verify,
        "--resume": arguments.resume,
        "--remote": arguments.remote,
    }
    for option, given in options.items():
        if given:
            raise InputError(f"{arguments.source}: is an adapter, for which {option} means nothing; leave it out")
    (outtype,) = arguments.outtype if len(arguments.outtype) == 1 else [""]
    if outtype.lower() not in ("auto", *OUTTYPES):
        found = ",".join(arguments.outtype)
        raise InputError(f"{arguments.source}: --outtype {found}: an adapter is one of auto, {', '.join(OUTTYPES)}")
    plan = plan_adapter(open_adapter(arguments.source), arguments.base, outtype.lower())
    size = sum(tensor.nbytes for tensor in plan.model.tensors)
    about = f"adapter of {len(plan.changed)} matrices, rank {plan.rank}, {format_size(size)}"
    print(f"{arguments.outfile or plan.default_path()}: {about}", file=sys.stderr)
    path = None if arguments.dry_run else write_adapter(plan, arguments.outfile)
    if arguments.json:
        print_json({"path": path and str(path), "rank": plan.rank, "matrices": plan.changed, "bytes": size})
    elif path:
        print(path)
    return 0
