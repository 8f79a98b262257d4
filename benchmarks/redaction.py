"""What the redaction of logged requests finds of 300 made-up lines in English and Spanish, and what it takes wrongly.

    python -m benchmarks.redaction [--write]     --write makes docs/measured/redaction.md

Lines, and what of each must go: sources/redaction/lines.txt. A line is found if nothing of what must go is left in it
(parts of 3 characters count as left); a false alarm is a line of kind `none` that is not as it was.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ajuste.learning.statistics.metrics import wilson_interval  # noqa: E402
from ajuste.serving.log.redact import redact  # noqa: E402
from benchmarks.results import value  # noqa: E402

LINES = ROOT / "sources" / "redaction" / "lines.txt"
NONE = "none"
LEFT = 3  # so many characters of a secret in a row are a part of it that is left


@dataclass(frozen=True)
class Line:
    """A line of the corpus; `secrets` is what must go."""

    language: str
    kind: str
    text: str
    secrets: tuple[str, ...]

    def kept(self) -> bool:
        """Whether the redacted line is as it was."""
        return redact(self.text) == self.text

    def gone(self) -> bool:
        """Whether nothing of its secrets is left in the redacted line."""
        return gone(self, redact(self.text))


def gone(line: Line, shown: str) -> bool:
    """Whether no part of a secret is left in what is shown of the line, but what the rest of the line holds too."""
    for secret in line.secrets:
        rest, size = line.text.replace(secret, " "), min(LEFT, len(secret))
        parts = {secret[i : i + size] for i in range(len(secret) - size + 1)}
        if any(part in shown for part in {part for part in parts if part not in rest} or {secret}):
            return False
    return True


def read() -> list[Line]:
    """All lines of the corpus, in its order."""
    found = []
    for raw in LINES.read_text(encoding="utf-8").splitlines():
        if raw.startswith("#"):
            continue
        language, kind, marked = raw.replace("·", "").split(" ", 2)
        secrets = tuple(re.findall(r"\[\[(.+?)\]\]", marked))
        found.append(Line(language, kind, re.sub(r"\[\[(.+?)\]\]", r"\1", marked), secrets))
    return found


def table(lines: list[Line]) -> list[str]:
    """A row a kind: lines, those found or wrongly changed, the share with its 95 % interval, by language."""
    rows = ["| kind | lines | found | recall | 95 % | English | Spanish |", "|---|---|---|---|---|---|---|"]
    secret = [line for line in lines if line.kind != NONE]
    kinds = list(dict.fromkeys(line.kind for line in secret))
    for name, some in [*((kind, [line for line in secret if line.kind == kind]) for kind in kinds), ("all", secret)]:
        rows.append(_row(f"`{name}`" if name != "all" else "**all**", some, Line.gone))
    rows += ["", "| lines without a secret | lines | changed | false alarms | 95 % | English | Spanish |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    rows.append(_row("`none`", [line for line in lines if line.kind == NONE], lambda line: not line.kept()))
    return rows


def _row(name: str, lines: list[Line], hit) -> str:
    hits = [line for line in lines if hit(line)]
    low, high = wilson_interval(len(hits), len(lines))
    by = []
    for language in ("en", "es"):
        of = [line for line in lines if line.language == language]
        by.append(f"{sum(line.language == language for line in hits)} of {len(of)}")
    share = f"{len(hits) / len(lines):.3f} | {low:.3f} to {high:.3f}"
    return f"| {name} | {len(lines)} | {len(hits)} | {share} | {by[0]} | {by[1]} |"


def page(lines: list[Line]) -> str:
    """docs/measured/redaction.md."""
    missed = [line for line in lines if line.kind != NONE and not line.gone()]
    wrong = [line for line in lines if line.kind == NONE and not line.kept()]
    return "\n".join([
        "# Redaction of logged requests: what is found, what is taken wrongly", "",
        "`python -m benchmarks.redaction --write` made this page. The lines are `sources/redaction/lines.txt`,",
        f"{len(lines)} made up for it in English and Spanish; what looks at them is `ajuste/serving/log/redact.py`,",
        "behind `ajuste serve --log-requests`. A line counts as found if no three characters of what must go are left.",
        "",
        *table(lines), "",
        "Who wrote the rules wrote the lines too, and some rules were mended by looking at them: on lines of",
        "others expect less. Names, street addresses, dates of birth and what a text tells of a person in words are",
        "not in them: no rule here finds those.", "",
        "Missed:", "", *([f"- {line.language} `{line.kind}`: `{line.text}`" for line in missed] or ["- none"]), "",
        "Taken wrongly:", "", *([f"- `{line.text}` became `{redact(line.text)}`" for line in wrong] or ["- none"]), "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="make docs/measured/redaction.md")
    lines = read()
    text = page(lines)
    secret = [line.gone() for line in lines if line.kind != NONE]
    plain = [not line.kept() for line in lines if line.kind == NONE]
    value("lines with a secret, found", "share", [sum(secret) / len(secret)])
    value("lines without one, changed", "share", [sum(plain) / len(plain)])
    if parser.parse_args().write:
        (ROOT / "docs" / "measured" / "redaction.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
