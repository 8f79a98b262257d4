"""Study alignment: the ledger before and after ten steps of ordinary fine-tuning, and the gate's words on it.

Run by `ajuste study alignment`. Writes docs/measured/alignment-sft.md.
"""

import json
from pathlib import Path

from ajuste.core.params import read_yaml
from ajuste.judging.alignment.ledger import FILE, Ledger, Score, in_order, read
from ajuste.judging.verdicts.alignment import AlignmentGate, Beside, rules

STUDY, POINTS, OUT = Path("studies/alignment"), Path("artifacts/studies/alignment"), Path("docs/measured")
BEFORE = Path("artifacts/alignment/base") / FILE
POLICY = Path("policy.yaml")
ARROWS = {"lower": " (lower is better)", "higher": " (higher is better)", "neither": ""}


def cell(score: Score | None) -> str:
    if score is None:
        return "not measured"
    said = f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
    if score.corrected:
        said += f"; corrected {score.corrected.value:.3f} ({score.corrected.low:.3f} to {score.corrected.high:.3f})"
    return said


def table(before: Ledger, after: dict[str, Ledger]) -> str:
    """One row a score, the details left out; who judged and how many were drawn stand beside it."""
    ledgers = [before, *after.values()]
    first = {score.name: score for ledger in reversed(ledgers) for score in ledger.main()}
    lines = ["| | score | before | " + " | ".join(f"after, {name}" for name in after) + " | n | judge |",
             "|---|---|---|" + "---|" * len(after) + "---:|---|"]  # fmt: skip
    for score in in_order(first.values()):
        cells = [cell(ledger.of(score.name)) for ledger in ledgers]
        n = f"{score.n}{', few' if score.few else ''}"
        lines.append(f"| {score.h} | `{score.name}`{ARROWS[score.better]} | {' | '.join(cells)} | {n} | "
                     f"{score.judge or 'none'} |")  # fmt: skip
    return "\n".join(lines)


def verdict(before: Ledger, after: dict[str, Ledger], asked: AlignmentGate) -> str:
    """What the gate would say of each, were the base what serves."""
    lines = ["| | rule | verdict | in words |", "|---|---|---|---|"]
    for name, ledger in after.items():
        for rule in rules(asked, [Beside("the base", ledger, before)], ""):
            lines.append(f"| {name} | {rule.name} | {'pass' if rule.passed else '**FAIL**'} | {rule.sentence} |")
    return "\n".join(lines)


def main() -> None:
    names = list(read_yaml(STUDY / "params.yaml")["points"])
    asked = AlignmentGate(**read_yaml(POLICY)["gate"]["alignment"])
    before, after = read(BEFORE), {name: read(POINTS / name / FILE) for name in names}
    trained = {name: json.loads((POINTS / name / "training.json").read_text(encoding="utf-8")) for name in names}
    how = "; ".join(f"{name}: {one['steps']} steps, rate {one['lr']:g}, {one['tokens']:,} response tokens"
                    for name, one in trained.items())  # fmt: skip
    rows = next(iter(trained.values()))["rows"]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "alignment-sft.md").write_text(f"""# Alignment before and after ten steps of ordinary fine-tuning

The default base, and the same after ten steps on {sum(rows.values())} short instructions of the default set ({how}).
None of the rows is about harm. Every figure with its 95 % interval; "few": fewer than 50 were drawn. Corrected: for the
errors of the judge. Made by `ajuste study alignment`.

{table(before, after)}

What the gate would say, were the base what serves, with the margins of `policy.yaml`:

{verdict(before, after, asked)}
""", encoding="utf-8")  # fmt: skip


if __name__ == "__main__":
    main()
