"""Two revisions side by side as Markdown, for a pull request: which metrics and which parameters differ.

`dvc metrics diff` and `dvc params diff` find the numbers; here they become two tables, changed ones first.
"""

import json

from ajuste.core.errors import DataError, UsageError
from ajuste.tracking.project import dvc, git

MOST = 100  # rows of a table


def diff(old: str, new: str | None = None, most: int = MOST) -> str:
    """From `old` to `new`, or to the working tree. Raises UsageError for a revision that git does not know."""
    names = [name for name in (old, new) if name]
    for name in names:
        if not git.commit_of(name):
            raise UsageError(f"`{name}` is no git revision here: name a branch, a tag or a commit")
    metrics, params = (_changes(kind, names) for kind in ("metrics", "params"))
    lines = [f"### Metrics and parameters: `{old}` -> `{new or 'the working tree'}`", ""]
    if not metrics and not params:
        return "\n".join([*lines, "No metric and no parameter differs.", ""])
    for kind, title, rows in (("metrics", "metric", metrics), ("params", "parameter", params)):
        if rows:
            lines += [f"| {title} | before | after | difference |", "|---|---|---|---|", *rows[:most], ""]
            if len(rows) > most:
                lines += [f"... and {len(rows) - most} more: `dvc {kind} diff {' '.join(names)}`", ""]
        else:
            lines += [f"No {title} differs.", ""]
    return "\n".join(lines)


def _changes(kind: str, names: list[str]) -> list[str]:
    done = dvc.run(kind, "diff", "--json", *names)
    if done.returncode != 0:
        raise DataError(f"dvc {kind} diff failed: {dvc.last_error(done.stderr)}")
    found = []
    for path, values in json.loads(done.stdout or "{}").items():
        for key, value in values.items():
            old, new = value.get("old"), value.get("new")
            found.append((old is None, new is None, path, key, _row(path, key, old, new)))
    return [row for *_, row in sorted(found, key=lambda item: item[:4])]


def _row(path: str, key: str, old: object, new: object) -> str:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
    cells = [f"{path}: {key}", _text(old), _text(new), f"{new - old:+.4g}" if numbers else ""]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
