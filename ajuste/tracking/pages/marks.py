"""The marks that all pictures of the pages are made of: lines, texts, dots, axes, as SVG elements.

Every text goes through `escape`; colours are CSS classes of the page.
"""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high], about as many as asked."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number as a reader wants it on an axis: 0.5, 12, 1,600."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def padded(low: float, high: float) -> tuple[float, float]:
    """The range with some air at both ends; never empty."""
    pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight line; `style` is a CSS class of the page, as in all marks."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(style, x1, y1, x2, y2)


def text(x: float, y: float, words: str, style: str) -> Markup:
    """A text, escaped, whose anchor the style says."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, words)


def dot(x: float, y: float, style: str, title: str, radius: float = 3) -> Markup:
    """A circle with a tooltip."""
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
        style, x, y, radius, title
    )


def drawing(width: float, height: float, parts: Sequence[Markup], title: str) -> Markup:
    """The whole picture. `title` is what a screen reader says."""
    body = Markup("").join(parts)
    return Markup(
        '<svg viewBox="0 0 {:.0f} {:.0f}" style="max-width: {:.0f}px" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, width * 1.4, escape(title), body)


def y_axis(low: float, high: float, y: Callable[[float], float], left: float, right: float) -> Markup:
    """Numbers at the left edge and lines across, from `left` to `right`; `y` turns a value into a row."""
    marks = [line(left, y(value), right, y(value), "grid") + text(left - 6, y(value) + 4, number(value), "tick end")
             for value in ticks(low, high)]
    return Markup("").join(marks)
