"""What the report page shows of instruction fine-tuning, read from files; every part may be missing.

Held-out loss of base and tuned model, scores of their answers, the answers themselves, the assistant against the
classifier, forgetting, what is trained of a row. Nothing here formats numbers or escapes texts: the template does.
"""

import json

from markupsafe import Markup

from ajuste.core.errors import UsageError
from ajuste.rows.encoded.mask import as_html, read_masked
from ajuste.tracking.pages import report_data as data
from ajuste.tracking.pages import svg as svg
from ajuste.tracking.registry.describe import in_words
from ajuste.tracking.runs import facts

EVALUATED = data.ARTIFACTS / "evaluated"
FIGURES = {  # of both models, each with its interval
    "loss": "held-out loss, nats a token", "rules": "prompts with every rule kept", "exact_match": "exact match",
    "rouge1": "ROUGE-1", "rougeL": "ROUGE-L",
}  # fmt: skip
METRICS = {"log_likelihood_per_token": "log p of a token", "accuracy": "accuracy"}


def section(shown_rows: int = 2) -> dict:
    """Everything of the section; {} when no stage of it has run."""
    folder = data.ARTIFACTS / "adapters/instruct"
    card = data.read_json(folder / "ajuste.json")
    result = data.read_json(EVALUATED / "instruct/instruct.json")
    encoding = data.read_json(data.ARTIFACTS / "encoded/instructions/encoding.json")
    validated = data.validated("instructions")
    found = {
        "card": card,
        "method": in_words(card.get("method", "")),
        "held_out": result.get("held_out", {}),
        "figures": _figures(result),
        "kinds": _kinds(result),
        "reviews": _reviews(result),
        "answers": answers(),
        "forgetting": forgetting(),
        "curves": _curves(facts.history_rows(folder)),
        "mask": _mask(shown_rows),
        "encoding": encoding,
        "validation": data.read_json(validated / "validation.json"),
        "quarantine": data.quarantine(folder=validated),
        "proof": data.read_json(data.ARTIFACTS / "merged/instruct/proof.json"),
        "training": data.state_of("instruct"),
    }
    return found if any(found.values()) else {}


def _figures(result: dict) -> list[dict]:
    """One row a figure: its name, and the interval of base and tuned model, None where it was not measured."""
    rows = []
    for key, name in FIGURES.items():
        row = {"name": name, **{model: _figure(result, model, key) for model in ("base", "instruct")}}
        if row["base"] or row["instruct"]:
            rows.append(row)
    return rows


def _figure(result: dict, model: str, key: str) -> dict | None:
    if key == "loss":
        return result.get("held_out", {}).get(model, {}).get("loss")
    if key == "rules":
        return result.get("rules", {}).get(model, {}).get("passed")
    return result.get("references", {}).get(model, {}).get(key)


def _kinds(result: dict) -> list[tuple[str, dict, dict]]:
    """(kind of rule, counts of the base, counts of the tuned model), each {"kept", "asked"}."""
    base, tuned = (result.get("rules", {}).get(model, {}).get("kinds", {}) for model in ("base", "instruct"))
    return [(kind, base.get(kind), tuned.get(kind)) for kind in sorted(base.keys() | tuned.keys())]


def _reviews(result: dict) -> dict:
    """The assistant against the classifier on the same reviews, with seconds a row where this machine measured them."""
    scored = result.get("reviews") or {}
    if not scored:
        return {}
    phases = data.state_of("evaluate_instruct").get("phases", {})
    rows = [
        {"name": name, "accuracy": scored[key]["accuracy"],
         "seconds": phases[f"reviews_{key}"] / scored["rows"] if f"reviews_{key}" in phases else None}
        for key, name in (("instruct", "the assistant, asked for the label"), ("classifier", "the classifier"))
        if key in scored
    ]  # fmt: skip
    return {"rows": scored["rows"], "models": rows, "difference": scored.get("difference")}


def answers() -> list[dict]:
    """The lines of answers.jsonl: id, prompt, base, instruct."""
    path = EVALUATED / "instruct/answers.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def forgetting() -> list[dict]:
    """One row a control set: the scores before and after, F = before - after, and what that says."""
    before, after = (data.read_json(EVALUATED / f"forgetting_{model}/scores.json") for model in ("base", "instruct"))
    rows = []
    for name, scored in (before.get("sets") or after.get("sets") or {}).items():
        lost = after.get("F", {}).get(name)
        rows.append({
            "name": name, "metric": METRICS.get(scored.get("metric"), scored.get("metric")), "rows": scored.get("rows"),
            "before": before.get("sets", {}).get(name), "after": after.get("sets", {}).get(name), "F": lost,
            "verdict": change(lost),
        })  # fmt: skip
    return rows


def change(interval: dict | None) -> str:
    """What F and its interval say."""
    if not interval:
        return ""
    return "forgotten" if interval["low"] > 0 else "better than before" if interval["high"] < 0 else "no clear change"


def _curves(history: list[dict]) -> tuple:
    """Loss over steps, training and validation; () where nothing was trained."""
    training = [(line["step"], line["loss"]) for line in history if "loss" in line]
    validation = [(line["step"], line["eval_loss"]) for line in history if "eval_loss" in line]
    if not training and not validation:
        return ()
    means = data.averaged(training)
    curves = [svg.Line("training loss", "c-lora", means)]
    curves.append(svg.Line("validation loss", "c-lora", validation, dashed=True))
    if len(means) < len(training):
        curves.append(svg.Line("training loss of each step", "c-lora faint", training))
    return (svg.lines(curves, "step", "loss", width=560, height=240),)


def _mask(rows: int) -> list[dict]:
    """The first training rows with their trained tokens told apart; `html` is escaped by as_html."""
    try:
        found = read_masked(data.ARTIFACTS / "encoded/instructions", data.ARTIFACTS / "base/decoder", "train", rows)
    except UsageError:  # not there yet
        return []
    return [{"caption": row.caption().replace("  ", " · "), "html": Markup(as_html(row.spans))} for row in found]


def findings(found: dict) -> list[dict]:
    """What a careful reader asks before relying on the assistant; [] where none was trained."""
    if not found or not (found["card"] or found["held_out"]):
        return []
    asked = []
    difference = found["held_out"].get("difference")
    if difference:
        state = "good" if difference["high"] < 0 else "bad" if difference["low"] > 0 else "warn"
        asked.append((state, "Assistant: learnt", f"Held-out loss, tuned - base: {difference['value']:+.3f} "
                      f"[{difference['low']:+.3f}, {difference['high']:+.3f}]."))
    else:
        asked.append(("unknown", "Assistant: learnt", "Not evaluated yet."))
    lost = [row["name"] for row in found["forgetting"] if row["verdict"] == "forgotten"]
    if any(row["F"] for row in found["forgetting"]):
        detail = f"Lost on {', '.join(lost)}: see the table of forgetting." if lost else "No control set got worse."
        asked.append(("warn" if lost else "good", "Assistant: what it knew", detail))
    proof = found["proof"]
    if proof.get("merged"):
        good = proof["max_logit_difference"] <= proof["tolerance"]
        asked.append(("good" if good else "bad", "Assistant: merge proof",
                      f"Largest logit difference {proof['max_logit_difference']:.1e} (allowed "
                      f"{proof['tolerance']:.0e}), {proof['equal_greedy_tokens']:.1%} equal greedy tokens."))
    elif proof:
        asked.append(("good", "Assistant: served as it was trained", f"Not merged: {proof['why']}."))
    return [{"state": state, "what": what, "detail": detail} for state, what, detail in asked]
