"""Tables of text: columns as wide as their widest cell, in Markdown that is also readable as plain text."""

from collections.abc import Sequence
from itertools import repeat


def align_columns(rows: Sequence[Sequence[str]], *, left: Sequence[bool], least: Sequence[int] = ()) -> list[list[str]]:
    """The cells padded to their column's width, which is at least `least`; columns are aligned to the left or right."""
    columns = zip(*rows, strict=True)
    widths = [max(minimum, *map(len, column)) for minimum, column in zip(least or repeat(0), columns, strict=False)]
    return [
        [cell.ljust(width) if side else cell.rjust(width) for cell, width, side in zip(row, widths, left, strict=True)]
        for row in rows
    ]


def format_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int | Sequence[bool] = 1, least: Sequence[int] = ()
) -> str:
    """A Markdown table, as `align_columns` aligns it; a number for `left` aligns as many columns to the left."""
    sides = [i < left for i in range(len(titles))] if isinstance(left, int) else left
    heads, *body = align_columns([titles, *rows], left=sides, least=least or [3] * len(titles))
    marks = ["-" * len(head) if side else "-" * (len(head) - 1) + ":" for head, side in zip(heads, sides, strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, marks, *body))
