"""One look for all plots: colours that colour-blind readers tell apart, a title, PNG or SVG by the file's name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lltool import __version__
from lltool.gguf.errors import InputError
from lltool.gguf.whole_file import whole_file

# Okabe and Ito, "Color Universal Design" (2008), darkest contrasts first; yellow is left out, it is too faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
SUFFIXES = (".png", ".svg")

_STYLE: Any = {  # matplotlib types a dictionary of them by its hundreds of keys
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "legend.frameon": False,
}


@contextmanager
def picture(target: Path, width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of that many inches to draw on, which is saved at the end: whole or not at all."""
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"{target}: pictures are written as {' or '.join(SUFFIXES)}; name the file so")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained")  # no pyplot, no display
        yield figure
        _save(figure, target)


def add_title(figure: Any, title: str, subtitle: str) -> Any:
    """Writes a title, and under it in grey what holds for the whole picture; returns the part left to draw on."""
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    body = figure.subfigures(1, 1)
    body.suptitle(subtitle, x=0.01, ha="left", color="#555555", fontsize=9)
    return body


def _save(figure: Any, target: Path) -> None:
    kind = target.suffix.lower()[1:]
    made = {"Software" if kind == "png" else "Creator": f"lltool {__version__}"}
    try:
        with whole_file(target) as temporary:
            figure.savefig(temporary, format=kind, metadata=made)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
