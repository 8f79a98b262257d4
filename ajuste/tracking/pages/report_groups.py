"""What the report page shows of methods of groups (GRPO, RLOO), read from files; every part may be missing.

What each says on test prompts beside the model before, and its curves, above all those that say whether the groups
teach anything: the loss does not. Nothing here formats numbers or escapes texts: the template does.
"""

from ajuste.tracking.pages import report_data as data
from ajuste.tracking.pages import svg
from ajuste.tracking.pages.report_rlhf import FIGURES
from ajuste.tracking.runs import facts

METHODS = {"grpo": "GRPO", "rloo": "RLOO"}
CURVES = (  # title, key of history.jsonl
    ("score", "score"), ("groups without variance, share", "flat_groups"), ("gradient norm", "grad_norm"),
    ("entropy, nats a token", "entropy"), ("KL, nats a response", "kl"), ("tokens a response", "length"),
)  # fmt: skip


def sections() -> list[dict]:
    """A section of each method that has run."""
    return [found for method, title in METHODS.items() if (found := _section(method, title))]


def _section(method: str, title: str) -> dict:
    adapter = data.ARTIFACTS / "adapters" / method
    card, history = data.read_json(adapter / "ajuste.json"), facts.history_rows(adapter)
    result = data.read_json(data.ARTIFACTS / "evaluated" / method / f"{method}.json")
    if not (card or result or history):
        return {}
    alarms = data.read_json(adapter / "alarms.json")
    return {
        "method": method,
        "title": title,
        "card": card,
        "result": result,
        "updates": len(history),
        "figures": [
            {"name": name, "form": form, "before": result[figure].get("sft"), "after": result[figure].get(method),
             "difference": result[figure].get("difference")}
            for figure, name, form in FIGURES if figure in result
        ],
        "curves": curves(history),
        "alarms": alarms if isinstance(alarms, list) else [],
    }  # fmt: skip


def curves(history: list[dict]) -> list[tuple]:
    """(title, picture) of each figure of the updates that was recorded."""
    drawn = []
    for title, key in CURVES:
        points = [(row["step"], row[key]) for row in history if key in row]
        if points:
            drawn.append((title, svg.lines([svg.Line(title, "c-lora", points)], "update", "")))
    return drawn
