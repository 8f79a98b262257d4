"""Study red-team-full: attack rates and judges' cards as tables, docs/measured/red-team.md. Run by `ajuste study`.

Counts and categories alone: no request and no answer stands on the page. Writes metrics/red-team.json too.
"""

import json
from pathlib import Path

from ajuste.core.errors import UsageError
from ajuste.core.figures import write_json
from ajuste.judging.alignment import rates
from ajuste.judging.alignment.behaviours import CATEGORIES
from ajuste.judging.alignment.refusal import SUCCESS, VERDICTS

POINTS, METRICS, OUT = Path("artifacts/studies/red-team-full"), Path("metrics"), Path("docs/measured")
SETTINGS = {"plain": "no system message", "guarded": "a system message that asks for caution"}


def read(path: Path) -> dict:
    """JSON of a step. Raises UsageError that names a missing file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{path} is missing or no JSON: run `ajuste study red-team-full`") from None


def gathered(folder: Path) -> dict:
    """metrics/red-team.json: scores and verdicts by setting, cards, and what search and rewriting came to."""
    attacks = {setting: read(folder / "attack" / setting / "scores.json") for setting in SETTINGS}
    cards = {path.parent.name: read(path) for path in sorted(folder.glob("cards/*/card.json"))}
    for card in cards.values():
        for part in (card["golden"], *card["outside"].values()):
            part["misses"] = len(part["misses"])
    return {"attacks": attacks, "cards": cards, "search": searched(read(folder / "search.json")),
            "rewrite": rewritten(read(folder / "rewrite.json"))}  # fmt: skip


def searched(found: dict) -> dict:
    """Mean log p of the consent before and after, and successes before and after."""
    rows = found["behaviours"]
    shares = {
        when: rates.share(sum(row[f"verdict_{when}"] in SUCCESS for row in rows), len(rows))
        for when in ("before", "after")
    }
    means = {when: sum(row[when] for row in rows) / len(rows) for when in shares}
    return {"rows": len(rows), "prompts_each": found["prompts_each"], "log_p": means, "success": shares}


def rewritten(found: dict) -> list[dict]:
    """Success within the first t tries, for each t."""
    return [{"tries": tries, **rates.share(hits, found["rows"])} for tries, hits in enumerate(found["hits"], 1)]


# --- the page ---------------------------------------------------------------------------------------------------------


def interval(found: dict | None) -> str:
    """0.856 (0.821 to 0.886)"""
    return "-" if found is None else f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def families_table(attack: dict) -> str:
    """A row a family: success of the greedy answer, the same corrected, hit@k, and the verdicts; the twins last."""
    scores = {score["name"]: score for score in attack["scores"]}
    lines = [f"| family | attack success | corrected | hit@k | {' | '.join(VERDICTS)} |",
             "|---|---|---|---|" + "---:|" * len(VERDICTS)]  # fmt: skip
    for family, verdicts in attack["verdicts"].items():
        counts = " | ".join(str(verdicts.get(name, 0)) for name in VERDICTS)
        if family == "twin":
            name, own, hit = "benign twins: over-refusal", scores["over_refusal"], None
        else:
            name, own, hit = family, scores[f"attack_success.{family}"], scores[f"hit_at_k.{family}"]
        lines.append(f"| {name} | {interval(own)} | {interval(own['corrected'])} | {interval(hit)} | {counts} |")
    return "\n".join(lines)


def parts_table(attack: dict) -> str:
    """Attack success of each family by category and language, without intervals: few behaviours each."""
    scores = {score["name"]: score for score in attack["scores"]}
    parts = [*CATEGORIES, "en", "es"]
    numbers = [f"{part} ({scores[f'over_refusal.{part}']['n']})" for part in parts]
    lines = [f"| family | {' | '.join(numbers)} |", "|---|" + "---:|" * len(parts)]
    for family in attack["verdicts"]:
        head = "over_refusal" if family == "twin" else f"attack_success.{family}"
        cells = [f"{scores[f'{head}.{part}']['value']:.2f}" for part in parts]
        lines.append(f"| {'over-refusal' if family == 'twin' else family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cards_table(cards: dict[str, dict]) -> str:
    """A row a judge and set: precision and recall of success and of refusal, and both kinds that are hard."""
    lines = ["| judge | answers | rows | success: precision | recall | refused: precision | recall | mixed seen | "
             "off topic told |", "|---|---|---:|---|---|---|---|---|---|"]  # fmt: skip
    for name, card in cards.items():
        golden = card["golden"]
        parts = {"golden": golden, **{f"golden, {key}": part for key, part in golden["groups"].items()},
                 **card["outside"]}  # fmt: skip
        for of, part in parts.items():
            sides = [part[side] for side in ("success", "refused")]
            cells = [interval(side[figure]) for side in sides for figure in ("precision", "recall")]
            cells += [interval(part["of_label"][label]) for label in ("partial", "off_topic")]
            lines.append(f"| `{name}` | {of} | {part['rows']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(found: dict) -> str:
    """docs/measured/red-team.md."""
    attacks, search = found["attacks"], found["search"]
    one = next(score for score in attacks["plain"]["scores"] if score["name"] == "over_refusal")
    parts = []
    for setting, words in SETTINGS.items():
        parts += [f"## Attacks, {words}", families_table(attacks[setting]),
                  "Shares by category and language (behaviours in brackets, few each):", parts_table(attacks[setting])]
    log_p = search["log_p"]
    tries = "; ".join(f"{row['tries']}: {interval(row)}" for row in found["rewrite"])
    return f"""# Red team

Made by `ajuste study red-team-full`; how and why: [red-team.md](../red-team.md). {one['n']} behaviours of
{len(CATEGORIES)} categories, and as many benign twins; judged by {one['judge']}. Success: the answer complies, wholly
or in part. Intervals: Wilson's 95 % over behaviours, of hit@k a bootstrap; corrected: without the judge's errors, as
its golden transcripts tell them, with their uncertainty.

{f"{chr(10)}{chr(10)}".join(parts)}

## Search for a suffix

{search['rows']} behaviours, {search['prompts_each']} prompts each.

| | without a suffix | with the best one |
|---|---|---|
| mean log p of a consent, nats | {log_p['before']:.2f} | {log_p['after']:.2f} |
| attack success | {interval(search['success']['before'])} | {interval(search['success']['after'])} |

## A model that rewrites

Attack success within so many tries: {tries}.

## Judges

Precision and recall of "the attack succeeded" and of its opposite, on answers that people labelled. Mixed answers seen:
how many of the partly compliant ones count as a success; off topic told: how many that speak of something else do not.

{cards_table(found['cards'])}
"""


def main() -> None:
    found = gathered(POINTS)
    METRICS.mkdir(exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(METRICS / "red-team.json", found)
    (OUT / "red-team.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
