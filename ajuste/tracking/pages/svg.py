"""Pictures of the report page as inline SVG: lines, intervals, a reliability diagram, the lineage graph.

Plain functions: numbers and texts in, an SVG element as Markup out. Every text goes through `escape`; colours are CSS
classes of the page, so that one picture serves light, dark and paper. No library draws these: a page without
scripts and network needs exactly four simple pictures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from ajuste.tracking.pages.marks import dot, drawing, line, number, padded, text, ticks, y_axis


@dataclass(frozen=True)
class Line:
    """One curve. `style` is a CSS class of the page (c-frozen, c-full, c-lora); `dashed` marks validation.

    bounds: the (low, high) of each point, drawn as a bar behind it; a curve has them for all of its points or for none.
    """

    label: str
    style: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    bounds: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Node:
    """A box of the lineage: what it is (data, stage, version, alias), its name, and the hash or number below it."""

    id: str
    kind: str
    name: str
    detail: str


def lines(
    curves: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
    diagonal: bool = False,
    mark: tuple[str, float] | None = None,
    width: int = 320,
    height: int = 200,
) -> Markup:
    """Curves over a shared pair of axes. log_x: a logarithmic x axis with a tick at every x of the first curve.

    mark: a name and the x of a vertical line.
    """
    curves = [c if c.bounds else replace(c, points=[p for p in c.points if all(map(math.isfinite, p))]) for c in curves]
    points = [point for curve in curves for point in curve.points]
    points += [(x, end) for c in curves for (x, _), ends in zip(c.points, c.bounds, strict=False) for end in ends]
    if not points:
        return Markup('<p class="none">no points yet</p>')
    scale = math.log10 if log_x else float
    x_low, x_high = min(scale(x) for x, _ in points), max(scale(x) for x, _ in points)
    y_low, y_high = y_range or padded(min(y for _, y in points), max(y for _, y in points))
    left, right, top, bottom = 44, 10, 22, 34

    def at(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low) if y_high > y_low else 0.5
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    parts = [y_axis(y_low, y_high, lambda y: at(points[0][0], y)[1], left, width - right)]
    marks = sorted({x for x, _ in curves[0].points}) if log_x else ticks(x_low, x_high)
    for x in marks:
        column, _ = at(x, y_low)
        parts.append(text(column, height - bottom + 15, number(x), "tick mid"))
    if diagonal:
        parts.append(line(*at(x_low, x_low), *at(x_high, x_high), "diagonal"))
    if mark:
        name, x = mark
        column = at(x, y_low)[0]
        side = "end" if column > width - 40 else "mid"  # a name in the middle would be cut at the edge
        parts.append(line(column, at(x, y_low)[1], column, at(x, y_high)[1], "diagonal"))
        parts.append(text(min(column, width - right), 12, name, f"tick {side}"))
    for curve in curves:
        parts += _curve(curve, at)
    parts.append(text((left + width - right) / 2, height - 4, x_name, "axis mid") + text(left, 12, y_name, "axis"))
    return drawing(width, height, parts, f"{y_name} by {x_name}: {', '.join(curve.label for curve in curves)}")


def _curve(curve: Line, at: Callable[[float, float], tuple[float, float]]) -> list[Markup]:
    """A curve with its intervals; of few points each is a dot that says its value."""
    bars = [line(*at(x, low), *at(x, high), f"bar {curve.style}")
            for (x, _), (low, high) in zip(curve.points, curve.bounds, strict=False)]
    place = [at(x, y) for x, y in curve.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
    style = f"curve {curve.style}{' dashed' if curve.dashed else ''}"
    drawn = Markup('<polyline class="{}" points="{}"><title>{}</title></polyline>').format(style, path, curve.label)
    dots = [dot(x, y, curve.style, f"{curve.label}: {value[1]:.4g} at {number(value[0])}")
            for (x, y), value in zip(place, curve.points, strict=True)]
    return [*bars, drawn, *(dots if len(dots) <= 20 else [])]


def intervals(
    rows: Sequence[tuple[str, str, float, float, float]], reference: tuple[str, float] | None = None
) -> Markup:
    """Rows of (label, CSS class, value, low, high), each a dot with its interval; `reference` is a vertical line."""
    width, row_height, left, right = 500, 34, 130, 50
    low = min([row[3] for row in rows] + ([reference[1]] if reference else []))
    low, high = padded(low, max(row[4] for row in rows))
    low, high = max(low, 0.0), min(high, 1.0)
    height = row_height * len(rows) + 44

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right) if high > low else left

    bottom = height - 28
    parts = []
    for value in ticks(low, high, 5):
        parts.append(
            line(at(value), 16, at(value), bottom, "grid") + text(at(value), bottom + 15, number(value), "tick mid")
        )
    if reference:
        name, value = reference
        parts.append(line(at(value), 16, at(value), bottom, "diagonal") + text(at(value), 12, name, "tick mid"))
    for index, (label, style, value, start, end) in enumerate(rows):
        y = 16 + row_height * (index + 0.5)
        parts.append(text(left - 12, y + 5, label, "label end"))
        parts.append(line(at(start), y, at(end), y, f"bar {style}"))
        parts.append(dot(at(value), y, style, f"{label}: {value:.4f}, 95 % interval {start:.4f} to {end:.4f}", 6))
        parts.append(text(width - right + 8, y + 5, f"{value:.3f}", "label"))
    return drawing(width, height, parts, "Quality of each strategy with its 95 % interval")


def lineage(nodes: Sequence[Node], edges: Sequence[tuple[str, str]]) -> Markup:
    """The graph from raw data to alias, top to bottom. Edges that a longer path already tells are left out."""
    wide, high, gap_x, gap_y = 178, 46, 18, 34
    rows = _layers([node.id for node in nodes], edges)
    width = max(len(row) for row in rows) * (wide + gap_x) + gap_x
    height = len(rows) * (high + gap_y) + 8
    known = {node.id: node for node in nodes}
    place = {}
    for depth, row in enumerate(rows):
        start = (width - len(row) * (wide + gap_x) + gap_x) / 2
        for column, name in enumerate(row):
            place[name] = (start + column * (wide + gap_x), 4 + depth * (high + gap_y))
    parts = []
    for source, target in _reduced(edges):
        (x1, y1), (x2, y2) = place[source], place[target]
        x1, y1, x2, middle = x1 + wide / 2, y1 + high, x2 + wide / 2, gap_y / 2
        parts.append(
            Markup('<path class="edge" d="M{:.1f},{:.1f} C{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f}"/>').format(
                x1, y1, x1, y1 + middle, x2, y2 - middle, x2, y2
            )
        )
    for name, (x, y) in place.items():
        node = known[name]
        box = Markup('<rect x="{:.1f}" y="{:.1f}" width="{}" height="{}" rx="8"/>').format(x, y, wide, high)
        texts = text(x + wide / 2, y + 20, _short(node.name, 24), "label mid")
        texts += text(x + wide / 2, y + 37, _short(node.detail, 27), "hash mid")
        title = Markup("<title>{}: {}</title>").format(node.name, node.detail)
        parts.append(Markup('<g class="node k-{}">{}{}{}</g>').format(node.kind, box, texts, title))
    return drawing(width, height, parts, "Lineage: raw data, stages with the hash of what they made, versions, aliases")


def _layers(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Rows of the drawing: each name as low as its first reader allows, ordered by where its sources stand."""
    readers = {name: [t for s, t in edges if s == name] for name in names}
    sources = {name: [s for s, t in edges if t == name] for name in names}
    depth: dict[str, int] = {}

    def deep(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((deep(source) for source in sources[name]), default=-1)
        return depth[name]

    for name in sorted(names, key=deep, reverse=True):
        if readers[name]:
            depth[name] = min(depth[reader] for reader in readers[name]) - 1
    rows: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    position: dict[str, float] = {}
    for level in range(len(rows)):
        row = [name for name in names if depth[name] == level]
        row.sort(key=lambda name: sum(position.get(s, 0.5) for s in sources[name]) / max(1, len(sources[name])))
        rows[level] = row
        position |= {name: (index + 0.5) / len(row) for index, name in enumerate(row)}
    return rows


def _reduced(edges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Transitive reduction: an edge is dropped when another path leads from its source to its target."""
    after: dict[str, set[str]] = {}
    for source, target in edges:
        after.setdefault(source, set()).add(target)

    def reachable(start: str, banned: tuple[str, str]) -> set[str]:
        found, queue = set(), [start]
        while queue:
            here = queue.pop()
            for there in after.get(here, ()):
                if (here, there) != banned and there not in found:
                    found.add(there)
                    queue.append(there)
        return found

    return [edge for edge in dict.fromkeys(edges) if edge[1] not in reachable(edge[0], edge)]


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
