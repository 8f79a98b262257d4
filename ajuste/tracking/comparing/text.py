"""What `compare` found, for a terminal or as Markdown: one column a version, one row a fact; answers side by side."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

from ajuste.judging.alignment.ledger import FEW
from ajuste.tracking.registry.families import all as families

COLUMN = 22  # characters that a version needs
MOST = 20  # answers that a table shows; JSON has all
LONGEST = 600  # characters of an answer on a terminal; Markdown and JSON have all
FIRST = 22  # characters of the first column

def rows(found: dict) -> list[tuple[str, list[str]]]:
    """(fact, one text a version); a fact that no version has is left out, and "" is a line between groups."""
    versions = found["versions"]
    table: list[tuple[str, list[str]]] = [
        ("alias", [", ".join(v["aliases"]) for v in versions]),
        ("strategy", [v["strategy"] or "" for v in versions]),
        ("made from", [v["base_version"] or "" for v in versions]),
        ("", []),
    ]
    for key, title in families.figures_of(found["name"]).items():
        table.append((title, [_interval(v["test"].get(key)) for v in versions]))
    for key, (title, form) in families.validation_of(found["name"]).items():
        table.append((title, [_number(v["validation"].get(key), form) for v in versions]))
    table.append(("", []))
    for name in sorted({name for v in versions for name in v["forgetting"]}):
        table.append((f"forgetting {name}", [_interval(v["forgetting"].get(name)) for v in versions]))
    table += [("", []), *_alignment(versions)]
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
        ("made again", [f"{v['reproduced']['verdict']}, {v['reproduced']['when'][:10]}" if v["reproduced"] else ""
                        for v in versions]),
        ("MLflow run", [_short(v["run_id"] or "") for v in versions]),
    ]
    table = [(fact, cells) for fact, cells in table if not fact or any(cells)]
    # a blank row parts groups of facts: none stands first, last or beside another
    return [row for i, row in enumerate(table) if row[0] or (i + 1 < len(table) and i and table[i + 1][0])]


def notes(found: dict) -> list[str]:
    """Sentences below the table."""
    lines = []
    for pair in found["paired"]:
        lines.append(
            f"version {pair['version']} against {pair['against']}: {pair['verdict']} ({pair['metric']} "
            f"{pair['difference']:+.4f}, 95 % interval {pair['low']:+.4f} to {pair['high']:+.4f}, paired on "
            f"{pair['rows']} {pair['unit']})"
        )
    if any(version["forgetting"] for version in found["versions"]):
        lines.append("forgetting is F = score before - score after, so above 0 is lost: log p a token of a text set, "
                     "accuracy of a choice set")
    for name, _, few in _aligned(found["versions"]):
        if few:
            lines.append(f"{name}: of fewer than {FEW} that were drawn")
    if not found["same_test_rows"]:
        lines.append("these versions were tested on different rows: only the paired lines compare them fairly")
    for version in found["versions"]:
        lines += [f"version {version['version']}, {alias}: {text}" for alias, text in version["alias_history"].items()]
    if found["left_out"]:
        lines.append(f"not shown: version {', '.join(found['left_out'])}; `ajuste compare {found['name']} "
                     f"{' '.join(found['left_out'][-2:])}` shows them")
    return lines


def _aligned(versions: list[dict]) -> list[tuple[str, str, bool]]:
    """(score, judge, whether it rests on few) of the alignment ledgers; a judge of its own makes a row of its own."""
    found: dict[tuple[str, str, str], bool] = {}
    for v in versions:
        for name, score in v["alignment"].items():
            key = score["h"], name, score["judge"] or ""
            found[key] = found.get(key, False) or score["n"] < FEW
    return [(name, judge, few) for (_, name, judge), few in sorted(found.items())]


def _alignment(versions: list[dict]) -> list[tuple[str, list[str]]]:
    """A row a score and judge, which stands beside it; versions that were not measured have no figure."""
    table = []
    for name, judge, _ in _aligned(versions):
        scores = [v["alignment"].get(name) for v in versions]
        cells = [_interval(score) if score and (score["judge"] or "") == judge else "" for score in scores]
        table.append((f"{name} ({judge})" if judge else name, cells))
    return table


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
    if found["answers"]:
        console.print()
        columns = answer_columns(found)
        table = Table(title="Answers to the same prompts", title_justify="left", title_style="bold", show_lines=True)
        table.add_column("prompt", ratio=2, overflow="fold")
        for heading, _ in columns:
            table.add_column(Text(heading), ratio=3, overflow="fold")
        for answer in found["answers"][:MOST]:
            texts = [answer["prompt"], *(of(answer) for _, of in columns)]
            table.add_row(*(Text(_printable(text)) for text in texts))
        console.print(table)
        if more := _more(found):
            console.print(more)
    return out.getvalue()


def answer_columns(found: dict) -> list[tuple[str, Callable[[dict], str]]]:
    """(heading, text of an answer) of the base, where all versions have the same, and of each version that answered."""
    columns = [("base", lambda answer: answer["base"])] if all(a["base"] is not None for a in found["answers"]) else []
    for version in found["answers"][0]["versions"]:
        columns.append((f"version {version}", lambda answer, version=version: answer["versions"][version]))
    return columns


def _more(found: dict) -> str:
    """That a table does not hold all answers; "" where it does."""
    over = len(found["answers"]) - MOST
    return f"{over} more answers: --format json has all {over + MOST}" if over > 0 else ""


def _printable(text: str) -> str:
    """Without control characters, which a model may write and a terminal obeys, and not too long."""
    clean = "".join(c for c in text if c == "\n" or c.isprintable())
    return (clean if len(clean) <= LONGEST else clean[: LONGEST - 1] + "…") or "(empty)"


def to_markdown(found: dict) -> str:
    """A GitHub table, and the notes as a list."""
    def escaped(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", "<br>")

    versions = [v["version"] for v in found["versions"]]
    lines = [f"## {escaped(found['name'])}", "", f"| version | {' | '.join(versions)} |",
             f"|---|{'---|' * len(versions)}"]
    for fact, cells in rows(found):
        if fact:
            lines.append(f"| {escaped(fact.strip())} | {' | '.join(escaped(cell) for cell in cells)} |")
    lines += ["", *(f"- {escaped(line)}" for line in notes(found)), ""]
    if found["answers"]:
        columns = answer_columns(found)
        headings = ["prompt", *(heading for heading, _ in columns)]
        lines += ["### Answers to the same prompts", "", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
        for answer in found["answers"][:MOST]:
            cells = [answer["prompt"], *(of(answer) for _, of in columns)]
            lines.append(f"| {' | '.join(escaped(cell) for cell in cells)} |")
        lines += ["", more, ""] if (more := _more(found)) else [""]
    return "\n".join(lines)


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
    equal = proof.get("equal_greedy_tokens", proof["equal_predictions"])
    return f"{proof['max_logit_difference']:.1e}" + ("" if equal is None else f", {equal:.2%} equal")


def _short(digest: str) -> str:
    return digest[:10]
