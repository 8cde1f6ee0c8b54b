"""`lltool inspect`: shows what is in a GGUF file."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from lltool.eval.common.quantities import format_size
from lltool.gguf.describe import Description, describe_adapter, describe_file, plain_value
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.tools.arguments import add_model_arguments, command_parser, print_json, take_model
from lltool.tools.parser import CommandParser
from lltool.tools.terminal import printable

_SHOWN_ITEMS = 6  # of an array
_SHOWN_CHARACTERS = 72  # of a string


def parser() -> CommandParser:
    parser = command_parser(
        "inspect",
        "Shows what is in a GGUF file: a summary and the metadata. Any shard stands for the whole split model.",
        """lltool inspect model.gguf
        lltool inspect model.gguf --tensors | grep attn
        lltool inspect model.gguf --json | jq .metadata""",
        json_flag=True,
    )
    add_model_arguments(parser)
    parser.add_argument("--metadata", action="store_true", help="only the metadata, with strings and arrays in full")
    parser.add_argument("--tensors", action="store_true", help="only the tensors, one a line")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    with open_gguf(take_model(arguments)) as file:
        _print_report(file, arguments)
    return 0


def _print_report(file: GGUFFile, arguments: argparse.Namespace) -> None:
    only_one = arguments.metadata or arguments.tensors
    if arguments.json:
        report: dict[str, Any] = (
            {}
            if only_one
            else _summary_json(describe_file(file)) | ({"adapter": a} if (a := describe_adapter(file)) else {})
        )
        if arguments.metadata or not only_one:
            report["metadata"] = {key: plain_value(value) for key, value in file.metadata.items()}
        if arguments.tensors or not only_one:
            report["tensors"] = [
                {"name": t.name, "type": t.type.name, "shape": t.shape, "bytes": t.nbytes} for t in file.tensors
            ]
        print_json(report)
        return
    sections = []
    if not only_one:
        sections.append(_summary_lines(describe_file(file), file))
    if arguments.metadata or not only_one:
        sections.append(_metadata_lines(file, whole=arguments.metadata))
    if arguments.tensors:
        sections.append(_tensor_lines(file))
    print("\n\n".join("\n".join(lines) for lines in sections))


def _summary_json(facts: Description) -> dict[str, Any]:
    return {
        "files": facts.files,
        "version": facts.version,
        "alignment": facts.alignment,
        "architecture": facts.architecture,
        "name": facts.name,
        "file_type": facts.file_type,
        "parameters": facts.parameters,
        "file_bytes": facts.file_bytes,
        "tensor_bytes": facts.tensor_bytes,
        "bits_per_weight": facts.bits_per_weight,
        "types": {
            share.type.name: {"tensors": share.tensors, "parameters": share.parameters, "bytes": share.bytes}
            for share in facts.types
        },
    }


def _summary_lines(facts: Description, file: GGUFFile) -> Iterator[str]:
    for path in facts.files:
        yield f"file          {path}"
    yield f"format        GGUF version {facts.version}, alignment {facts.alignment}"
    yield f"architecture  {printable(facts.architecture or '-')}"
    if facts.name:
        yield f"name          {printable(facts.name)}"
    yield f"file type     {facts.file_type or '-'}"
    yield f"parameters    {facts.parameters:,}"
    yield f"size          {format_size(facts.file_bytes)} ({facts.file_bytes:,} bytes)"
    for label, key in (("layers", "block_count"), ("context", "context_length")):
        value = file.metadata.get(f"{facts.architecture}.{key}")
        if value is not None and isinstance(value.data, int):
            yield f"{label:<14}{value.data:,}" + " tokens" * (label == "context")
    if adapter := describe_adapter(file):
        ranks = ", ".join(map(str, adapter["ranks"]))
        yield f"adapter       LoRA of {adapter['matrices']:,} matrices, rank {ranks}, alpha {adapter['alpha']}"
    yield f"tensors       {len(file.tensors):,}, which --tensors lists"
    if facts.bits_per_weight is not None:
        yield f"bits/weight   {facts.bits_per_weight:.3f}"
        yield ""
        rows = [
            (
                share.type.name,
                f"{share.tensors:,}",
                f"{share.bytes:,}",
                f"{100 * share.bytes / facts.tensor_bytes:.1f}%",
            )
            for share in facts.types
        ]
        yield from _table(("type", "tensors", "bytes", "share"), rows, left=1)


def _metadata_lines(file: GGUFFile, *, whole: bool) -> Iterator[str]:
    rows = [(key, _type_name(value), _shown(value, whole)) for key, value in file.metadata.items()]
    yield from _table((f"metadata ({len(rows)})", "type", "value"), rows, left=3)


def _tensor_lines(file: GGUFFile) -> Iterator[str]:
    rows = [
        (tensor.name, tensor.type.name, " x ".join(map(str, tensor.shape)), f"{tensor.nbytes:,}")
        for tensor in file.tensors
    ]
    yield from _table((f"tensors ({len(rows)})", "type", "shape", "bytes"), rows, left=2)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    from lltool.eval.common.tables import align_columns

    shown = [[printable(cell) for cell in row] for row in rows]
    for row in align_columns([titles, *shown], left=[i < left for i in range(len(titles))]):
        yield "  ".join(row).rstrip()


def _type_name(value: Value) -> str:
    if value.type != ValueType.ARRAY:
        return value.type.name.lower()
    return f"{value.item.name.lower() if value.item is not None else '?'}[{len(value.data)}]"


def _shown(value: Value, whole: bool) -> str:
    """One line for a value; unprintable characters are escaped as in JSON."""
    if value.type == ValueType.ARRAY:
        cut = not whole and len(value.data) > _SHOWN_ITEMS
        items = [_quoted(item) for item in plain_value(value, _SHOWN_ITEMS if cut else None)]
        return f"[{', '.join(items)}{', ...' if cut else ''}]"
    if isinstance(value.data, str):
        cut = not whole and len(value.data) > _SHOWN_CHARACTERS
        return _quoted(value.data[:_SHOWN_CHARACTERS]) + "..." if cut else _quoted(value.data)
    return str(value.data)


def _quoted(item: Any) -> str:
    return json.dumps(item, ensure_ascii=False) if isinstance(item, str) else str(item)
