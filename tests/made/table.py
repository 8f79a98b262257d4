"""docs/architectures.md: what becomes of each architecture in each use, as measured (tests/made/uses.py).

Run it: `python -m tests.made.table`, a few minutes; tests/models/test_architectures.py compares what stands there.
"""

import re
import warnings
from importlib.metadata import version

from ajuste.core.imports import ROOT
from tests.made.architectures import DECODERS, ENCODERS, SHAPES
from tests.made.uses import TOLERANCE, USES, Cell, measure, uses_of

PAGE = ROOT / "docs/architectures.md"
BEGIN, END = "<!-- measured: python -m tests.made.table -->\n", "<!-- end -->"
MEASURED_BY = ("transformers", "peft", "torch")


def table(cells: dict[tuple[str, str], Cell]) -> str:
    """The part of the page between BEGIN and END."""
    lines = [f"| architecture | its peculiarity | {' | '.join(USES)} |", "|---" * (2 + len(USES)) + "|"]
    for name, shape in (DECODERS | ENCODERS).items():
        verdicts = [cells[name, use].verdict if use in uses_of(name) else "" for use in USES]
        lines.append(f"| {name} | {shape.peculiar} | {' | '.join(verdicts)} |")
    largest = max(cell.difference for cell in cells.values())
    found = [cell.verdict for cell in cells.values()]
    counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in ("exact", "plain", "refused"))
    versions = ", ".join(f"{package} {version(package)}" for package in MEASURED_BY)
    said = f"Measured with {versions}: {len(SHAPES)} architectures, {len(cells)} cells: {counts}. The largest "
    said += f"difference is below {bound(largest):g} of the largest number compared (allowed: {TOLERANCE:g})."
    reasons: dict[tuple[str, str], list[str]] = {}
    for (name, use), cell in cells.items():
        if cell.said:
            reasons.setdefault((use, reason(cell.said)), []).append(name)
    refusals = [f"- {use}, {', '.join(names)}: {why}." for (use, why), names in reasons.items()]
    return "\n".join([said, "", *lines, "", "Why it is refused:", "", *refusals, ""])


def bound(x: float) -> float:
    """The next higher power of ten: what stands behind it is rounding, and another processor's differs."""
    return next(10.0**n for n in range(-12, 12) if x <= 10.0**n)


def reason(said: str) -> str:
    """A refusal without the folder and the architecture's name, which the table says."""
    said = re.sub(r" \(/[^)]*\)", "", said)
    said = re.sub(r" of architecture `\w+`", " of it", said)
    return re.sub(r"^\w+For(\w+)", r"its form for \1", said).replace("|", "/").rstrip(".")


def stated() -> dict[tuple[str, str], str]:
    """{(architecture, use): verdict} as the page says it."""
    rows = [line.strip("| \n").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line]
    head = next(row for row in rows if row[0] == "architecture")
    found = {}
    for row in rows:
        if row[0] in SHAPES:
            found |= {(row[0], use): verdict.strip() for use, verdict in zip(head[2:], row[2:], strict=False)}
    return {key: verdict for key, verdict in found.items() if verdict}


def main() -> None:
    cells = {}
    for name in SHAPES:
        for use in uses_of(name):
            cells[name, use] = measure(name, use)
        print(name, *(f"{use}: {cells[name, use].verdict}" for use in uses_of(name)), flush=True)
    wrong = {key: cell for key, cell in cells.items() if cell.verdict == "WRONG"}
    if wrong:
        raise SystemExit("\n".join(f"{key}: {cell.difference:.2g} {cell.said}" for key, cell in wrong.items()))
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table(cells) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
