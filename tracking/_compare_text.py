"""What `compare` found, as a table for a terminal or as Markdown: one column a version, one row a fact."""

from __future__ import annotations

from io import StringIO

COLUMN = 20  # characters that a version needs
FIRST = 22  # characters of the first column
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "mcc": "MCC", "auc": "AUC", "ece": "calibration error"}


def rows(found: dict) -> list[tuple[str, list[str]]]:
    """(fact, one text a version); a fact that no version has is left out, and "" is a line between groups."""
    versions = found["versions"]
    table: list[tuple[str, list[str]]] = [
        ("alias", [", ".join(v["aliases"]) for v in versions]),
        ("strategy", [v["strategy"] or "" for v in versions]),
        ("", []),
    ]
    for key, title in METRICS.items():
        table.append((f"test {title}", [_interval(v["test"].get(key)) for v in versions]))
    for key, title in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        table.append((f"validation {title}", [_number(v["validation"].get(key), ".3f") for v in versions]))
    table += [
        ("", []),
        ("trained parameters", [_trained(v["trained_parameters"]) for v in versions]),
        ("seconds", [_number(v["seconds"], ".1f") for v in versions]),
        ("  of them, features", [_number(v["feature_seconds"], ".1f") for v in versions]),
        ("peak memory, MB", [_number(v["peak_memory_mb"], ",.0f") for v in versions]),
        ("size, MB", [_number(v["size_bytes"] and v["size_bytes"] / 1e6, ".1f") for v in versions]),
        ("merge proof", [_proof(v["proof"]) for v in versions]),
        ("adapter version", [v["adapter_version"] or "" for v in versions]),
        ("", []),
    ]
    for key, values in found["differing_parameters"].items():
        cells = ["" if values[v["version"]] is None else str(values[v["version"]]) for v in versions]
        table.append((key, cells))
    table += [
        ("", []),
        ("base", [_short(v["base"]["sha256"] or "") for v in versions]),
        ("data", [_short(v["data"] or "") for v in versions]),
        ("DVC hash", [_short(v["dvc"] or "") for v in versions]),
        ("git commit", [_short(v["git_commit"] or "") + (" changed" if v["dirty"] else "") for v in versions]),
        ("MLflow run", [_short(v["run_id"] or "") for v in versions]),
    ]
    table = [(fact, cells) for fact, cells in table if not fact or any(cells)]
    # no empty group, no line at the end
    return [row for i, row in enumerate(table) if row[0] or (i + 1 < len(table) and i and table[i + 1][0])]


def notes(found: dict) -> list[str]:
    """Sentences below the table."""
    lines = []
    for pair in found["paired"]:
        lines.append(
            f"version {pair['version']} against {pair['against']}: {pair['verdict']} (accuracy "
            f"{pair['difference']:+.4f}, 95 % interval {pair['low']:+.4f} to {pair['high']:+.4f}, paired on "
            f"{pair['rows']} test rows)"
        )
    if not found["same_test_rows"]:
        lines.append("these versions were tested on different rows: only the paired lines compare them fairly")
    for version in found["versions"]:
        lines += [f"version {version['version']}, {alias}: {text}" for alias, text in version["alias_history"].items()]
    if found["left_out"]:
        lines.append(f"not shown: version {', '.join(found['left_out'])}; `ajuste compare {found['name']} "
                     f"{' '.join(found['left_out'][-2:])}` shows them")
    return lines


def to_terminal(found: dict, width: int = 100, colour: bool = False) -> str:
    """Tables no wider than `width`: more versions than fit go into further tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = StringIO()
    console = Console(file=out, width=width, force_terminal=colour, highlight=False)
    many = max(1, (width - FIRST) // (COLUMN + 3))
    table_rows = rows(found)
    for start in range(0, len(found["versions"]), many):
        part = slice(start, start + many)
        table = Table(title=found["name"], title_justify="left", title_style="bold")
        table.add_column("version", min_width=FIRST - 4, overflow="fold")
        for version in found["versions"][part]:
            table.add_column(Text(version["version"]), overflow="fold")
        for index, (fact, cells) in enumerate(table_rows):
            if fact:
                last = index + 1 < len(table_rows) and not table_rows[index + 1][0]
                table.add_row(Text(fact), *(Text(cell) for cell in cells[part]), end_section=last)
        console.print(table)
    for line in notes(found):
        console.print(Text(line))
    return out.getvalue()


def to_markdown(found: dict) -> str:
    """A GitHub table, and the notes as a list."""
    def escaped(text: str) -> str:
        return text.replace("|", "\\|").replace("<", "&lt;")

    versions = [v["version"] for v in found["versions"]]
    lines = [f"## {escaped(found['name'])}", "", f"| version | {' | '.join(versions)} |",
             f"|---|{'---|' * len(versions)}"]
    for fact, cells in rows(found):
        if fact:
            lines.append(f"| {escaped(fact.strip())} | {' | '.join(escaped(cell) for cell in cells)} |")
    return "\n".join([*lines, "", *(f"- {escaped(line)}" for line in notes(found)), ""])


def _interval(value: dict | None) -> str:
    if not value:
        return ""
    if value["low"] is None or value["high"] is None:
        return _number(value["value"], ".3f")
    return f"{value['value']:.3f} [{value['low']:.3f} {value['high']:.3f}]"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _trained(parameters: dict) -> str:
    trainable, total = parameters.get("trainable"), parameters.get("total")
    if trainable is None or not total:
        return ""
    return f"{trainable:,.0f} ({trainable / total:.2%})"


def _proof(proof: dict | None) -> str:
    if not proof:
        return ""
    equal = proof["equal_predictions"]
    return f"{proof['max_logit_difference']:.1e}" + ("" if equal is None else f", {equal:.2%} equal")


def _short(digest: str) -> str:
    return digest[:10]
