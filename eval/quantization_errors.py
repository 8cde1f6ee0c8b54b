"""What quantization lost, tensor by tensor: as a table for programs and a plot for people."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lltool.gguf.whole_file import whole_file
from lltool.quant.choose import block_of
from lltool.quant.plan import size_of
from lltool.quant.quantize import Report

# One mark a type, so that a mix shows where it spends its bits.
_MARKS = "osD^v<>pP*Xhd"


@dataclass(frozen=True)
class TensorError:
    """A row of the table. `part` is the name without the block, `layer` the block's number."""

    file: str
    tensor: str
    layer: int | None
    part: str
    type: str
    weights: int
    bytes: int
    error: float  # relative, of squares; weighted by importance if that was given


def write_error_report(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Writes errors.csv, and errors-TYPE.png of each report, to `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [tensor_errors(report) for report in reports]
    table = folder / "errors.csv"
    with whole_file(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(TensorError.__dataclass_fields__)
        for rows in tables:
            writer.writerows(vars(row).values() for row in rows)
    plots = [
        plot_errors(rows, report.plan.recipe.name, folder / f"errors-{report.plan.recipe.name}.png")
        for report, rows in zip(reports, tables, strict=True)
        if rows
    ]
    return [table, *plots]


def tensor_errors(report: Report) -> list[TensorError]:
    """The tensors that were encoded, in the file's order."""
    rows = []
    for choice in report.plan.choices:
        tensor = choice.tensor
        if report.errors is not None and tensor.name in report.errors:
            layer = block_of(tensor.name)
            part = tensor.name.removesuffix(".weight").removeprefix(f"blk.{layer}.")
            weights, error = tensor.rows * tensor.columns, report.errors[tensor.name]
            rows.append(
                TensorError(
                    report.path.name, tensor.name, layer, part, choice.type.name, weights, size_of(choice), error
                )
            )
    return rows


def plot_errors(rows: Sequence[TensorError], title: str, target: Path) -> Path:
    """Error against layer, a line for each part of a layer and a mark for each type."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure((10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axis: Any = figure.add_subplot()
    types = sorted({row.type for row in rows})
    marks = {type: _MARKS[index % len(_MARKS)] for index, type in enumerate(types)}
    for index, part in enumerate(dict.fromkeys(row.part for row in rows)):
        mine = sorted((row for row in rows if row.part == part), key=_place)
        places = [_place(row) for row in mine]
        color = f"C{index % 10}"
        axis.plot(places, [row.error for row in mine], color=color, linewidth=1, label=part)
        for row, place in zip(mine, places, strict=True):
            axis.plot(place, row.error, marks[row.type], color=color, markersize=5)
    if all(row.error > 0 for row in rows):
        axis.set_yscale("log")
    axis.set_title(f"{title}: what each tensor lost")
    axis.set_xlabel("layer (-1: of no layer)")
    axis.set_ylabel("relative squared error")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    handles = [Line2D([], [], color="gray", marker=marks[type], linestyle="", label=type) for type in types]
    axis.legend(handles=handles, fontsize=8)
    figure.savefig(target, dpi=120)
    return target


def _place(row: TensorError) -> int:
    return -1 if row.layer is None else row.layer
