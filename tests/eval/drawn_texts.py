"""Finds texts of a picture that lie on each other or beyond its border."""

from itertools import combinations
from typing import Any

from matplotlib.text import Text


def texts_of(figure: Any) -> list[Text]:
    """The texts that are drawn: tick labels beyond the limits of their axis are not."""
    scales = [scale for axis in figure.axes for scale in (axis.xaxis, axis.yaxis)]
    ticks = [tick for scale in scales for tick in (*scale.majorTicks, *scale.minorTicks)]
    drawn = [tick for scale in scales for tick in scale._update_ticks()]
    hidden = {id(label) for tick in ticks if tick not in drawn for label in (tick.label1, tick.label2)}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and id(text) not in hidden
    ]


def misplaced_texts(figure: Any) -> list[tuple[str, ...]]:
    """Pairs of texts that overlap by more than a pixel, and single ones that reach beyond the picture's border."""
    figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    wrong: list[tuple[str, ...]] = [
        (a, b)
        for (a, box), (b, other) in combinations(boxes, 2)
        if min(box.x1, other.x1) - max(box.x0, other.x0) > 1 and min(box.y1, other.y1) - max(box.y0, other.y0) > 1
    ]
    border = figure.bbox
    return wrong + [
        (text,)
        for text, box in boxes
        if box.x0 < border.x0 - 1 or box.x1 > border.x1 + 1 or box.y0 < border.y0 - 1 or box.y1 > border.y1 + 1
    ]
