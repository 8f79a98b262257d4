"""Pictures of the comparison page as inline SVG: figures over versions, a forest plot, figures against cost.

Numbers and texts in, an SVG element as Markup out, as in ajuste/tracking/pages/svg.py; both are made of the marks of
marks.py. A picture with many versions grows to the side (`over_versions`) or down (`forest`), so that it can be read
with 2 and with 50.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ajuste.tracking.pages.marks import dot, drawing, line, number, padded, text, ticks, y_axis

LABELLED = 12  # versions that all have their number beside their dot


@dataclass(frozen=True)
class Point:
    """A version's figure. `style` is a CSS class of the page; `rows` tells on which test rows it was measured."""

    label: str
    style: str
    value: float
    low: float | None = None
    high: float | None = None
    second: float | None = None  # the same figure on validation rows
    rows: str | None = None
    date: str = ""
    alias: str = ""

    @property
    def title(self) -> str:
        """The words of a tooltip."""
        alias = f" ({self.alias})" if self.alias else ""
        interval = "" if self.low is None else f", 95 % interval {self.low:.4f} to {self.high:.4f}"
        return f"version {self.label}{alias}: {self.value:.4f}{interval}"


def over_versions(points: Sequence[Point], y_name: str) -> Markup:
    """Each version in the order of its making: dot and interval, a ring for validation.

    A broken line parts versions that were tested on different rows.
    """
    step = 46 if len(points) <= LABELLED else 18
    left, right, top, bottom = 50, 16, 30, 48
    width, height = max(320, left + right + step * len(points)), 250
    step = (width - left - right) / len(points)
    ends = [end for p in points for end in (p.value, p.low, p.high, p.second) if end is not None]
    low, high = padded(min(ends), max(ends))

    def y(value: float) -> float:
        return height - bottom - (value - low) / (high - low) * (height - top - bottom)

    parts = [y_axis(low, high, y, left, width - right)]
    before, shown = None, None
    for index, point in enumerate(points):
        x = left + (index + 0.5) * step
        if index and point.rows != before:
            parts.append(line(x - step / 2, top - 4, x - step / 2, height - bottom, "diagonal"))
            if x + 70 < width:
                parts.append(text(x - step / 2 + 4, top + 2, "other test rows", "tick"))
        before = point.rows
        if point.low is not None and point.high is not None:
            parts.append(line(x, y(point.low), x, y(point.high), f"bar {point.style}"))
        if point.second is not None:
            parts.append(_ring(x, y(point.second), point.style, f"version {point.label}, validation: "
                                                                f"{point.second:.4f}"))
        parts.append(dot(x, y(point.value), point.style, point.title, 5))
        parts.append(text(x, height - bottom + 15, point.label, "label mid" if point.alias else "tick mid"))
        if point.date and (shown is None or (point.date != shown[1] and x - shown[0] > 74)):
            parts.append(text(x, height - bottom + 30, point.date, "tick mid"))
            shown = x, point.date
    parts.append(text(left, 12, y_name, "axis") + text((left + width - right) / 2, height - 4, "version", "axis mid"))
    return drawing(width, height, parts, f"{y_name} of each version with its 95 % interval")


def forest(rows: Sequence[tuple[str, str, float, float, float, str]], x_name: str) -> Markup:
    """Paired differences: rows of (label, CSS class, difference, low, high, verdict) around a line at 0."""
    width, row_height, left, right, top = 500, 24, 150, 62, 18
    height = top + row_height * len(rows) + 40
    low, high = padded(min(0.0, *(row[3] for row in rows)), max(0.0, *(row[4] for row in rows)))
    bottom = height - 36

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = []
    for value in ticks(low, high, 5):
        parts.append(line(x(value), top, x(value), bottom, "grid"))
        parts.append(text(x(value), bottom + 15, number(value), "tick mid"))
    parts.append(line(x(0.0), top - 6, x(0.0), bottom, "zero"))
    for index, (label, style, difference, start, end, verdict) in enumerate(rows):
        y = top + row_height * (index + 0.5)
        parts.append(text(left - 12, y + 5, label, "label end"))
        parts.append(line(x(start), y, x(end), y, f"bar {style}"))
        parts.append(dot(x(difference), y, style,
                          f"{label}: {difference:+.4f}, 95 % interval {start:+.4f} to {end:+.4f}: {verdict}", 5))
        parts.append(text(width - right + 8, y + 5, f"{difference:+.3f}", "label"))
    parts.append(text((left + width - right) / 2, height - 4, x_name, "axis mid"))
    return drawing(width, height, parts, x_name)


def scatter(points: Sequence[tuple[float, Point]], x_name: str, y_name: str) -> Markup:
    """Figures with their intervals over a cost, logarithmic where the costs lie more than a factor of 20 apart."""
    width, height, left, right, top, bottom = 460, 260, 50, 24, 26, 38
    costs = [cost for cost, _ in points]
    logarithmic = min(costs) > 0 and max(costs) / min(costs) > 20
    scale = math.log10 if logarithmic else float
    x_low, x_high = padded(min(map(scale, costs)), max(map(scale, costs)))
    ends = [end for _, p in points for end in (p.value, p.low, p.high) if end is not None]
    y_low, y_high = padded(min(ends), max(ends))

    def x(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - (value - y_low) / (y_high - y_low) * (height - top - bottom)

    parts = [y_axis(y_low, y_high, y, left, width - right)]
    if logarithmic:
        powers = range(math.floor(x_low), math.ceil(x_high) + 1)
        # over many powers the numbers between them would overlap
        marks = [math.log10(m * 10.0**p) for p in powers for m in ((1, 2, 5) if len(powers) < 4 else (1,))]
        marks = [mark for mark in marks if x_low <= mark <= x_high]
    else:
        marks = ticks(x_low, x_high)
    for mark in marks:
        parts.append(text(x(mark), height - bottom + 15, number(10.0**mark if logarithmic else mark), "tick mid"))
    for cost, point in points:
        column = x(scale(cost))
        if point.low is not None and point.high is not None:
            parts.append(line(column, y(point.low), column, y(point.high), f"bar {point.style}"))
        parts.append(dot(column, y(point.value), point.style, f"{point.title}; {x_name} {number(cost)}", 5))
        if point.alias or len(points) <= LABELLED:
            parts.append(text(column + 8, y(point.value) + 4, point.label, "label"))
    parts.append(text((left + width - right) / 2, height - 4, x_name, "axis mid") + text(left, 12, y_name, "axis"))
    return drawing(width, height, parts, f"{y_name} by {x_name}")


def _ring(x: float, y: float, style: str, title: str) -> Markup:
    return Markup('<circle class="ring {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
        style, x, y, title)
