"""What the report page shows of RLHF, read from files; every part may be missing.

Preferences: what people agree on and what may be wrong with the comparisons. The reward model beside the people, by
margin. PPO: its curves, the radar for reward hacking, responses before and after, what it has forgotten. Nothing here
formats numbers or escapes texts: the template does.
"""

import json
from pathlib import Path

from ajuste.tracking.pages import report_data as data
from ajuste.tracking.pages import svg as svg
from ajuste.tracking.pages.report_instruct import METRICS, change
from ajuste.tracking.runs import facts

ADAPTERS, EVALUATED = data.ARTIFACTS / "adapters", data.ARTIFACTS / "evaluated"
CURVES = (  # title, keys of history.jsonl with their names: the first one solid
    ("score of the reward model", {"score": "score", "rlhf_reward": "score - beta KL"}),
    ("KL, nats a response", {"kl": "KL"}),
    ("beta, the price of a nat", {"beta": "beta"}),
    ("entropy, nats a token", {"entropy": "entropy"}),
    ("value loss", {"value_loss": "value loss"}),
    ("tokens a response", {"length": "length"}),
    ("gap of sampler and trainer, nats a token", {"sampler_gap_mean": "mean", "sampler_gap_p99": "99 %"}),
)
FIGURES = (  # of ppo.json: key, name, form, whether higher is better
    ("proxy", "reward model's score (proxy)", "{:+.3f}"), ("gold", "gold score, P(positive)", "{:.3f}"),
    ("length", "tokens a response", "{:.1f}"), ("ended", "responses that end by themselves", "{:.2f}"),
)  # fmt: skip


def section() -> dict:
    """Everything of the section; {} when no stage of it has run."""
    validated = data.validated("preferences")
    found = {
        "quality": data.read_json(validated / "quality.json"),
        "validation": data.read_json(validated / "validation.json"),
        "quarantine": data.quarantine(folder=validated),
        "reward": reward_model(),
        "ppo": ppo(),
        "forgetting": forgetting(),
    }
    return found if any(found.values()) else {}


# --- reward model -----------------------------------------------------------------------------------------------------


def reward_model() -> dict:
    """Card, test figures and pictures of the reward model; {} where none was trained."""
    folder = ADAPTERS / "reward"
    card, test = data.read_json(folder / "ajuste.json"), data.read_json(folder / "evaluation.json").get("test", {})
    if not card and not test:
        return {}
    return {
        "card": card,
        "test": test,
        "training": data.state_of("reward"),
        "margins": _margins(test),
        "calibration": _calibration(test),
        "curves": _losses(facts.history_rows(folder)),
    }


def _margins(test: dict):
    """Accuracy by margin with its intervals, beside one rater against the others and one half against the other."""
    rows = [row for row in test.get("by_margin", []) if row["accuracy"]]
    if not rows:
        return ""
    bounds = [(row["accuracy"]["low"], row["accuracy"]["high"]) for row in rows]
    curves = [svg.Line("reward model", "c-lora", [(r["margin"], r["accuracy"]["value"]) for r in rows], bounds=bounds)]
    for key, name, style in (("one_against_rest", "one person", "c-full"), ("split_half", "half of them", "c-frozen")):
        points = [(row["margin"], row[key]) for row in rows if row.get(key) is not None]
        curves += [svg.Line(name, style, points, dashed=True)] if points else []
    return svg.lines(curves, "margin of the mean ratings, at least", "pairs in the right order", width=420, height=240)


def _calibration(test: dict):
    points = [(cell["confidence"], cell["accuracy"]) for cell in test.get("calibration", {}).get("bins", [])
              if cell["pairs"] >= 5]
    if not points:
        return ""
    curve = svg.Line("reward model", "c-lora", points)
    return svg.lines([curve], "p(win) = sigmoid(difference)", "how often right", y_range=(0.0, 1.0), diagonal=True,
                     width=420, height=240)


def _losses(history: list[dict]):
    training = data.averaged([(line["step"], line["loss"]) for line in history if "loss" in line])
    validation = [(line["step"], line["eval_loss"]) for line in history if "eval_loss" in line]
    if not training and not validation:
        return ""
    curves = [svg.Line("training loss", "c-lora", training), svg.Line("validation", "c-lora", validation, dashed=True)]
    return svg.lines(curves, "step", "loss", width=420, height=240)


# --- PPO --------------------------------------------------------------------------------------------------------------


def ppo() -> dict:
    """Card, test figures, curves, radar and responses; {} where PPO has not run."""
    folder = ADAPTERS / "ppo"
    card, result = data.read_json(folder / "ajuste.json"), data.read_json(EVALUATED / "ppo/ppo.json")
    history, radar = facts.history_rows(folder), _list(folder / "radar.json")
    if not (card or result or history):
        return {}
    return {
        "card": card,
        "result": result,
        "figures": _figures(result),
        "updates": len(history),
        "training": data.state_of("ppo"),
        "curves": _curves(history),
        "radar": radar_of(radar),
        "kept": next((row["update"] for row in radar if row.get("kept")), None),
        "alarms": _list(folder / "alarms.json"),
        "answers": answers(),
    }


def _figures(result: dict) -> list[dict]:
    """One row a figure: before, after, and their paired difference where there is one."""
    return [{"name": name, "form": form, **{key: result[figure].get(key) for key in ("sft", "ppo", "difference")}}
            for figure, name, form in FIGURES if figure in result]


def _curves(history: list[dict]) -> list[tuple]:
    """(title, picture) of each figure of the updates that was recorded."""
    drawn = []
    for title, keys in CURVES:
        curves = [svg.Line(name, "c-lora", [(line["step"], line[key]) for line in history if key in line], index > 0)
                  for index, (key, name) in enumerate(keys.items())]
        if curves[0].points:
            drawn.append((title, svg.lines(curves, "update", "")))
    return drawn


def radar_of(rows: list[dict]) -> list[tuple]:
    """(title, picture) of proxy and gold over sqrt(KL), the kept update marked; [] before the first look."""
    if not rows:
        return []
    rows = sorted(rows, key=lambda row: row["update"])
    kept = next((row["sqrt_kl"] for row in rows if row.get("kept")), None)
    drawn = []
    for key, title, style in (("proxy", "Proxy: the reward model that PPO obeys", "c-lora"),
                              ("gold", "Gold: a scorer that training never saw", "c-full")):
        line = svg.Line(key, style, [(row["sqrt_kl"], row[key]["value"]) for row in rows],
                        bounds=[(row[key]["low"], row[key]["high"]) for row in rows])
        mark = None if kept is None else ("kept", kept)
        drawn.append((title, svg.lines([line], "sqrt(KL)", "", mark=mark, width=420, height=220)))
    return drawn


def answers() -> list[dict]:
    """The lines of answers.jsonl, with each text cut into what was given and what the model wrote."""
    path = EVALUATED / "ppo/answers.jsonl"
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [
        {"models": [{"given": line["prefill"] if line[model].startswith(line["prefill"]) else "",
                     "written": line[model].removeprefix(line["prefill"]), "proxy": line[f"proxy_{model}"],
                     "gold": line[f"gold_{model}"]} for model in ("sft", "ppo")]}
        for line in lines
    ]  # fmt: skip


def forgetting() -> list[dict]:
    """One row a control set: the scores of base, SFT and PPO, and F of both since the base."""
    scores = {name: data.read_json(EVALUATED / folder / "scores.json") for name, folder in
              (("base", "forgetting_base"), ("instruct", "forgetting_instruct"), ("ppo", "ppo"))}
    return [
        {"name": name, "metric": METRICS.get(scored.get("metric"), scored.get("metric")), "rows": scored.get("rows"),
         "scores": [scores[model].get("sets", {}).get(name) for model in scores],
         "F": [lost := scores[model].get("F", {}).get(name) for model in ("instruct", "ppo")], "verdict": change(lost)}
        for name, scored in scores["ppo"].get("sets", {}).items()
    ]  # fmt: skip


def _list(path: Path) -> list[dict]:
    found = data.read_json(path)
    return found if isinstance(found, list) else []
