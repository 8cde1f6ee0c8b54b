"""Tables in Markdown that also read well as they are."""

from collections.abc import Sequence


def format_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns as wide as they must be; the first `left` of them are text, the others stand at the right."""
    widths = [max(3, *map(len, column)) for column in zip(titles, *rows, strict=True)]
    marks = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = []
    for row in (titles, marks, *rows):
        cells = zip(row, widths, strict=True)
        lines.append([cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
