"""What the report page shows of alignment, read from the ledgers in artifacts/alignment; every part may be missing.

One table, scores by models, and one picture of the scores that are shares. A figure of few units is grey, a score that
a model lacks is said to be missing, and over-refusal stands right below the attacks, in the same type: a model that
refuses everything is not aligned. Nothing here formats numbers or escapes texts: the template does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ajuste.core.errors import DataError
from ajuste.judging.alignment.ledger import FILE, H, Ledger, Score, in_order, read
from ajuste.tracking.pages import report_data as data
from ajuste.tracking.pages.marks import dot, drawing, line, number, text, ticks
from ajuste.tracking.registry.families import all as families

MEASURED = data.ARTIFACTS / "alignment"
STYLES = ("c-base", "c-frozen", "c-lora", "c-full")
ATTACK, OVER_REFUSAL = "attack_success.direct", "over_refusal"
WORDS = {"higher": "higher is better", "lower": "lower is better", "neither": ""}


@dataclass(frozen=True)
class Column:
    """A model of the table. `ledger` is None where nobody measured it, `problem` says why a file cannot be read."""

    name: str
    title: str
    style: str
    ledger: Ledger | None
    problem: str = ""


@dataclass(frozen=True)
class Row:
    """A score of the table, one cell a column; None where that model lacks it."""

    h: str
    name: str
    words: str
    better: str
    cells: list[Score | None]


def section() -> dict:
    """Everything of the section; {} where there is no model whose alignment could be asked for."""
    columns = _columns()
    if not columns:
        return {}
    main = _rows(columns, detail=False)
    return {
        "columns": columns,
        "groups": [(h, [row for row in main if row.h == h]) for h in H if any(row.h == h for row in main)],
        "details": _rows(columns, detail=True),
        "both": _both(columns),
        "picture": picture(columns, [row for row in main if _drawable(row)]),
    }


def findings(found: dict) -> list[dict]:
    """Whether a model lets more through than the one before it, and refuses more that is harmless."""
    if not found:
        return []
    asked = []
    for before, after in _steps(found["columns"]):
        worse = [words for words, name in (("answers more that is harmful", ATTACK),
                                           ("refuses more that is harmless", OVER_REFUSAL))
                 if (a := before.ledger.of(name)) and (b := after.ledger.of(name)) and b.low > a.high]
        said = f"No worse than {before.title}, as far as the intervals tell."
        if worse:
            said = f"Beside {before.title} it {' and '.join(worse)}."
        state = "warn" if worse else "good"
        asked.append({"state": state, "what": f"{after.title}: refuses as before", "detail": said})
    missing = [column.title for column in found["columns"] if column.ledger is None]
    if missing:
        asked.append({"state": "unknown", "what": "Alignment measured", "detail": f"Not of {', '.join(missing)}."})
    return asked


def _columns() -> list[Column]:
    """The base, and the model of each method that answers people, in the order of the families."""
    made = [(family.folders.partition("/")[2], family.title) for family in families.FAMILIES if family.talks]
    made = [(name, title) for name, title in made
            if (data.ARTIFACTS / "merged" / name).is_dir() or (MEASURED / name / FILE).is_file()]
    if not made and not MEASURED.is_dir():
        return []
    return [Column(name, title, STYLES[index % len(STYLES)], *_ledger(name))
            for index, (name, title) in enumerate([("base", "base"), *made])]


def _ledger(name: str) -> tuple[Ledger | None, str]:
    path = MEASURED / name / FILE
    if not path.is_file():
        return None, ""
    try:
        return read(path), ""
    except DataError as error:
        return None, str(error)


def _steps(columns: list[Column]) -> list[tuple[Column, Column]]:
    """(model before, model): the base before the first one, the first one before all others."""
    measured = [column for column in columns if column.ledger is not None]
    by_name = {column.name: column for column in measured}
    first = families.of_name("assistant")[0].folders.partition("/")[2]
    before = {column.name: "base" if column.name == first else first for column in measured if column.name != "base"}
    return [(by_name[other], by_name[name]) for name, other in before.items() if other in by_name]


def _rows(columns: list[Column], detail: bool) -> list[Row]:
    found: dict[str, list[Score | None]] = {}
    for index, column in enumerate(columns):
        for score in column.ledger.scores if column.ledger else []:
            if score.detail == detail:
                found.setdefault(score.name, [None] * len(columns))[index] = score
    first = in_order(next(score for score in cells if score) for cells in found.values())
    return [Row(score.h, score.name, score.name.replace(".", ", ").replace("_", " "), WORDS[score.better],
                found[score.name]) for score in first]


def _both(columns: list[Column]) -> list[tuple[str, Score, Score]]:
    """(model, harmful requests that it answers, harmless ones that it refuses) where both were measured."""
    found = [(column.title, column.ledger.of(ATTACK), column.ledger.of(OVER_REFUSAL))
             for column in columns if column.ledger]
    return [(title, attack, refusal) for title, attack, refusal in found if attack and refusal]


def _drawable(row: Row) -> bool:
    return bool(row.better) and all(cell.high <= 1 for cell in row.cells if cell)


def picture(columns: Sequence[Column], rows: Sequence[Row]) -> Markup | str:
    """Each score a band, in it each model's dot and 95 % interval; faint where few units were drawn. "" without rows.
    """
    if not rows:
        return ""
    width, left, right, top, step, air = 620, 246, 16, 8, 11, 12
    height = top + sum(step * len(columns) + air for _ in rows) + 36
    bottom = height - 30

    def x(value: float) -> float:
        return left + value * (width - left - right)

    parts = [line(x(value), top, x(value), bottom, "grid") + text(x(value), bottom + 15, number(value), "tick mid")
             for value in ticks(0.0, 1.0, 5)]
    y = float(top)
    for row in rows:
        middle = y + (step * len(columns) + air) / 2
        arrow = "\u2193" if row.better.startswith("lower") else "\u2191"
        parts.append(text(left - 12, middle + 4, f"{row.words} {arrow}", "label end"))
        for index, (column, score) in enumerate(zip(columns, row.cells, strict=True)):
            if score is None:
                continue
            at, style = y + air / 2 + step * (index + 0.5), f"{column.style}{' few' if score.few else ''}"
            title = (f"{row.words}, {column.title}: {score.value:.3f}, 95 % interval {score.low:.3f} to "
                     f"{score.high:.3f}, n {score.n}, {score.judge or 'no judge'}")
            parts += [line(x(score.low), at, x(score.high), at, f"bar {style}"),
                      dot(x(score.value), at, style, title, 4)]
        y += step * len(columns) + air
        parts.append(line(left, y, width - right, y, "grid"))
    return drawing(width, height, parts, "Alignment scores of each model with their 95 % intervals")
