"""What the report page shows of DPO, read from files; every part may be missing.

How its implicit reward orders pairs that it never saw, what it says on test prompts beside the model before, and its
curves: above all the log-probabilities of both responses, because the preferred one may become less likely too.
Nothing here formats numbers or escapes texts: the template does.
"""

from ajuste.tracking.pages import report_data as data
from ajuste.tracking.pages import svg as svg
from ajuste.tracking.pages.report_rlhf import FIGURES
from ajuste.tracking.runs import facts

ADAPTER, EVALUATED = data.ARTIFACTS / "adapters/dpo", data.ARTIFACTS / "evaluated/dpo"
CURVES = (  # title, keys of history.jsonl with their names; those of validation stand behind eval_
    ("log-probability, nats a token", {"chosen": "preferred", "rejected": "the other"}),
    ("implicit reward", {"reward_chosen": "preferred", "reward_rejected": "the other"}),
    ("margin of the implicit rewards", {"margin": "margin"}),
    ("pairs in the right order", {"accuracy": "accuracy"}),
    ("loss", {"loss": "loss"}),
    ("displacement, nats a token", {"displacement": "lost"}),
)
STYLES = ("c-lora", "c-full")


def section() -> dict:
    """Everything of the section; {} where DPO has not run."""
    card, result = data.read_json(ADAPTER / "ajuste.json"), data.read_json(EVALUATED / "dpo.json")
    history = facts.history_rows(ADAPTER)
    if not (card or result or history):
        return {}
    alarms = data.read_json(ADAPTER / "alarms.json")
    return {
        "card": card,
        "result": result,
        "test": data.read_json(ADAPTER / "evaluation.json").get("test", {}),
        "figures": [
            {"name": name, "form": form, **{key: result[figure].get(key) for key in ("sft", "dpo", "difference")}}
            for figure, name, form in FIGURES if figure in result
        ],
        "training": data.state_of("dpo"),
        "curves": curves(history),
        "alarms": alarms if isinstance(alarms, list) else [],
    }  # fmt: skip


def curves(history: list[dict]) -> list[tuple]:
    """(title, picture) of each figure: solid the training rows, averaged, dashed the validation rows."""
    drawn = []
    for title, keys in CURVES:
        lines = []
        for style, (key, name) in zip(STYLES, keys.items(), strict=False):
            training = data.averaged([(row["step"], row[key]) for row in history if key in row])
            held_out = [(row["step"], row[f"eval_{key}"]) for row in history if f"eval_{key}" in row]
            lines += [svg.Line(name, style, training)] if training else []
            lines += [svg.Line(f"{name}, validation", style, held_out, dashed=True)] if held_out else []
        if lines:
            drawn.append((title, svg.lines(lines, "step", "")))
    return drawn
