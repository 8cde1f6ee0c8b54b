"""`lltool diff`: shows how two GGUF files differ."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.tools.arguments import command_parser, print_json
from lltool.tools.parser import CommandParser
from lltool.tools.terminal import printable

if TYPE_CHECKING:
    from lltool.gguf.diff import KeyChange, TensorChange
    from lltool.quant.differences import Difference

EXAMPLES = """
lltool diff model.gguf other.gguf
lltool diff model-F16.gguf model-Q4_K_M.gguf --json
lltool diff model.gguf other.gguf --metadata
"""
_SHOWN = 10  # tensors, those that differ most


def parser() -> CommandParser:
    parser = command_parser(
        "diff",
        "Shows how two GGUF files differ: metadata, tensors, and the values of the weights, whatever their types. "
        "The exit code is 0 if they are equal, and 1 if they differ.",
        EXAMPLES,
        json_flag=True,
    )
    add = parser.add_argument
    add("before", metavar="A", type=Path, help="a GGUF file, or any shard of a split model")
    add("after", metavar="B", type=Path, help="the one to compare with it")
    add("--metadata", action="store_true", help="compare only the metadata")
    add("--no-values", action="store_true", help="compare the names, shapes and types of tensors, but not their values")
    add("--all", action="store_true", help="show every tensor that differs, one a line")
    return parser


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)

    from lltool.gguf.diff import compare_metadata, compare_tensors
    from lltool.gguf.reader import open_gguf
    from lltool.quant.differences import compare_weights
    from lltool.tools.progress import progress_bar

    with open_gguf(arguments.before) as before, open_gguf(arguments.after) as after:
        keys = compare_metadata(before.metadata, after.metadata)
        tensors = [] if arguments.metadata else compare_tensors(before, after)
        values: list[Difference] = []
        if not (arguments.metadata or arguments.no_values):
            with progress_bar(" weights", "comparing") as progress:
                values = list(compare_weights(before, after, progress))
        changed = [value for value in values if not value.is_equal]
        if arguments.json:
            print_json(_report(keys, tensors, changed))
        else:
            print(*_lines(keys, tensors, values, changed, None if arguments.all else _SHOWN), sep="\n")
    return 1 if keys or tensors or changed else 0


def _report(
    keys: "Sequence[KeyChange]", tensors: "Sequence[TensorChange]", changed: "Sequence[Difference]"
) -> dict[str, Any]:
    from lltool.gguf.describe import plain_value

    def plain(value: Any) -> Any:
        return None if value is None else plain_value(value)

    def form(tensor: Any) -> Any:
        return None if tensor is None else {"type": tensor.type.name, "shape": tensor.shape}

    return {
        "equal": not (keys or tensors or changed),
        "metadata": {change.key: {"before": plain(change.before), "after": plain(change.after)} for change in keys},
        "tensors": {change.name: {"before": form(change.before), "after": form(change.after)} for change in tensors},
        "values": {value.name: {"relative": value.relative, "largest": value.largest} for value in changed},
    }


def _lines(
    keys: "Sequence[KeyChange]",
    tensors: "Sequence[TensorChange]",
    values: "Sequence[Difference]",
    changed: "Sequence[Difference]",
    most: int | None,
) -> Iterator[str]:
    if not (keys or tensors or changed):
        yield "no differences"
    if keys:
        yield f"metadata: {len(keys)} {'keys differ' if len(keys) > 1 else 'key differs'}"
        for key in keys:
            yield from _key_lines(key)
    if tensors:
        yield f"tensors: {len(tensors)} {'differ' if len(tensors) > 1 else 'differs'} in name, shape or type"
        yield from _tensor_lines(tensors, most)
    if changed:
        yield f"values: {len(changed)} of {len(values)} tensors differ"
        yield "  relative squared error, largest difference"
        worst = sorted(
            changed, key=lambda value: -value.relative if value.relative == value.relative else -float("inf")
        )
        for value in worst[:most]:
            yield f"  {value.relative:.3e}  {value.largest:.3e}  {printable(value.name)}"
        if most is not None and len(worst) > most:
            yield f"  ... and {len(worst) - most} more, which --all shows"


def _key_lines(change: "KeyChange") -> Iterator[str]:
    from lltool.gguf.diff import describe_change

    yield f"  {printable(change.key)}: {printable(describe_change(change))}"
    for index, old, new in change.items:
        yield f"    [{index}]: {printable(repr(old))} -> {printable(repr(new))}"


def _tensor_lines(tensors: "Sequence[TensorChange]", most: int | None) -> Iterator[str]:
    """A line for each tensor; unless all are asked for, those that only change their type are counted."""
    counts: Counter[str] = Counter()
    for change in tensors:
        old, new = change.before, change.after
        if most is not None and old is not None and new is not None and old.shape == new.shape:
            counts[f"{old.type.name} -> {new.type.name}"] += 1
        else:
            yield f"  {printable(change.name)}: {_form(old)} -> {_form(new)}"
    for types, count in counts.items():
        yield f"  {types}: {count} tensor{'s' * (count > 1)}"


def _form(tensor: Any) -> str:
    return "none" if tensor is None else f"{tensor.type.name} {' x '.join(map(str, tensor.shape))}"
