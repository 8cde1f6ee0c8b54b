"""The quantization error of each tensor, as a table for programs and a plot for people."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np

from lltool.eval.common.figure import add_title, log_ticks, picture, plain
from lltool.gguf.optional import require
from lltool.gguf.whole_file import make_folder, whole_file
from lltool.quant.choose import block_of
from lltool.quant.plan import size_of
from lltool.quant.quantize import Report


@dataclass(frozen=True)
class TensorError:
    """A row of the table. `part` is the tensor's name within its block, `layer` the block's number."""

    file: str
    tensor: str
    layer: int | None
    part: str
    type: str
    weights: int
    bytes: int
    error: float  # relative, of squares; weighted by importance if that was given


def write_error_report(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Writes errors.csv, and errors-TYPE.png for each report, to `folder`; returns the paths of the files."""
    require("matplotlib", str(folder))
    make_folder(folder)
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
    """The errors of the tensors that were encoded, in the file's order."""
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
    """Plots a row of cells for each kind of tensor, a cell for each layer; the colour is the error.

    A tensor outside of the layers fills its row. What is no number or 0, of which there is no logarithm, is grey.
    """
    kinds = {kind: [row for row in rows if row.part == kind] for kind in dict.fromkeys(row.part for row in rows)}
    layers = max((row.layer for row in rows if row.layer is not None), default=0) + 1
    errors = np.full((len(kinds), layers), np.nan)
    for place, found in enumerate(kinds.values()):
        for row in found:
            errors[place, slice(None) if row.layer is None else row.layer] = row.error
    errors[~(errors > 0)] = np.nan
    note = "squared error relative to the squared weights, by importance if it was given; right: mean over layers"
    with picture(target, 1.9 + 0.3 * len(kinds), **{"axes.grid": False}) as figure:
        body = add_title(figure, f"{title}: error of each tensor", note)
        axis = body.subplots()
        axis.set_facecolor("#dddddd")
        axis.set_xlim(-0.5, layers - 0.5)
        axis.set_ylim(len(kinds) - 0.5, -0.5)
        inside = [row.error for row in rows if row.layer is not None and row.error > 0]  # False for what is no number
        if shown := inside or errors[errors > 0].tolist():
            low, high = 0.98 * min(shown), 1.02 * max(shown)
            extent = (-0.5, layers - 0.5, len(kinds) - 0.5, -0.5)
            image = axis.imshow(errors, "cividis_r", "log", aspect="auto", extent=extent, interpolation="nearest")
            image.set_clim(low, high)
            ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
            extend = ends.get((bool(np.nanmin(errors) < low), bool(np.nanmax(errors) > high)), "neither")
            look = {"location": "bottom", "aspect": 50, "shrink": 0.7, "pad": 0.04, "extend": extend}
            bar = body.colorbar(image, ax=axis, ticks=log_ticks(low, high), format="{x:g}", **look)
            bar.minorticks_off()
            bar.set_label("relative squared error")
        names = [f"{kind}  {' '.join(dict.fromkeys(row.type for row in found))}" for kind, found in kinds.items()]
        axis.set_yticks(range(len(kinds)), [plain(fill(name, 44)) for name in names])
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
        for place, found in enumerate(kinds.values()):
            mean = float(np.mean([row.error for row in found]))
            axis.annotate(f"{mean:.2g}", (1.01, place), xycoords=("axes fraction", "data"), va="center")
        for side in axis.spines.values():
            side.set_visible(False)
    return target
