"""Assistants by PPO, from artifacts/*/ppo: each made from the SFT version that its tag `base_version` names.

Challenger   a PPO version takes the alias over only from the very version that it was made from, and only if the gold
             scorer, which neither training saw, puts it above that version with a 95 % interval that excludes 0, on
             validation prompts that did not choose its update; of several the largest gain wins. A PPO that only raised
             its own proxy stays behind.
Gate         gold on the test prompts, beside the version that it was made from and the champion. And it must not have
             lost the assistant: held-out loss, rules and ROUGE of the instruction evaluation (stage `assistant_ppo`)
             not worse than before by more than their margins. PPO raises the loss on purpose, a little.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ajuste.tracking.registry.families.assistants import (
    FIGURES,
    SHARED,
    Assistant,
    flat,
    forgetting_lines,
    forgotten,
    instruction_figures,
)
from ajuste.tracking.registry.families.family import (
    EVALUATED,
    Metric,
    Picture,
    Said,
    Tags,
    Values,
    as_tags,
    interval,
    judged,
    number,
    said,
)
from ajuste.tracking.runs import facts
from ajuste.tracking.runs.results import lines, table

if TYPE_CHECKING:
    from ajuste.judging.gate import Kept, Paired
    from ajuste.tracking.registry.registry import Version

AFTER, BEFORE = "ppo", "sft"  # the two models in the files of its evaluations
JUDGES = {"gold score": "gold", "proxy reward": "reward"}  # metric -> the tag of the model that judged it
VARIED = 0.8  # distinct-2 below this share of what it was: the responses have become alike


class Ppo(Assistant):
    """All that is said of PPO versions."""

    # --- rank and figures ---

    def takes_over(self, tags: Tags) -> str:
        gain, low = (float(tags.get(f"validation.{key}", "nan")) for key in (self.best, f"{self.best}_low"))
        return f"its gold score on validation is {gain:.4f} (at least {low:.4f}) above" if low > 0 else ""

    def scores(self, folder: Path, md5: str, strategy: str) -> tuple[dict[str, float], list[str]]:
        found, by = {}, []
        if judged(self.evaluate, folder, md5):
            result = facts.read_json(EVALUATED / "ppo" / "ppo.json")
            found |= as_tags("test", test_figures(result))
            found |= {"test.rows": result["prompts"]} if found and result.get("prompts") else {}
            found |= forgotten(EVALUATED / "ppo" / "scores.json")
            by += [self.evaluate] if found else []
        if judged(self.keeping, folder, md5):
            result = facts.read_json(EVALUATED / "assistant_ppo" / "assistant.json")
            kept = {figure: value for (figure, model), value in instruction_figures(result).items() if model == AFTER}
            found |= as_tags("test", kept)
            by += [self.keeping] if kept else []
        return (found, by) if found else ({}, [])

    def run_figures(self, folder: Path) -> dict[str, dict | float]:
        return flat(figures(facts.read_json(folder / "ppo.json"))
                    | instruction_figures(facts.read_json(folder / "assistant.json")))

    # --- words ---

    def challenger_rule(self) -> str:
        return ("a PPO version becomes `challenger` only if the gold scorer puts it above the SFT version that it was "
                "made from")

    def page(self, tags: Tags) -> list[str]:
        found = [f"- validation: gold {number(tags, 'validation.gold_gain', '+.4f')} above the model before PPO, at "
                 f"least {number(tags, 'validation.gold_gain_low', '+.4f')}; KL "
                 f"{number(tags, 'validation.kl', '.2f')} nats a response"]
        if "test.gold" in tags:
            found.append(f"- test ({tags.get('test.rows')} prompts): gold {interval(tags, 'test.gold')}, before "
                         f"{interval(tags, 'test.sft_gold')}, gain {interval(tags, 'test.gold_gain')}")
            found.append(f"- proxy reward {interval(tags, 'test.proxy')}, before {interval(tags, 'test.sft_proxy')}, "
                         f"gain {interval(tags, 'test.proxy_gain')}")
            found.append(f"- KL {interval(tags, 'test.kl')} nats a response; distinct-2 "
                         f"{number(tags, 'test.distinct2_ratio', '.2f')} of what it was; responses that end: "
                         f"{number(tags, 'test.ended', '.2f')}, before {number(tags, 'test.sft_ended', '.2f')}")
        if "test.loss" in tags:
            found.append(f"- as an assistant: held-out loss {interval(tags, 'test.loss')}, rules kept "
                         f"{interval(tags, 'test.rules')}, ROUGE-L {interval(tags, 'test.rougeL')}")
        return found + forgetting_lines(tags)

    def headline(self, tags: Tags) -> str:
        if "test.gold_gain" not in tags:
            return ""
        return f", gold {float(tags['test.gold_gain']):+.3f} against {tags.get('base_version', 'its base')}"

    # --- compare ---

    def row_values(self, version: Version) -> dict[tuple[str, str], Values]:
        """Gold and proxy of both models on the same prompts, each kept apart by its judge: another reward model's
        scores are another scale. And the held-out loss, which the version before has from its own evaluation."""
        own, found = f"{version.name}/{version.version}", {}
        rows = lines(version.tags.get("evaluate_run"), "answers.jsonl")
        for reference, model in ((own, AFTER), (version.tags.get("base_version", ""), BEFORE)):
            for metric, judge in JUDGES.items():
                column, by = f"{metric.partition(' ')[0]}_{model}", version.tags.get(f"judge.{judge}")
                found[reference, metric] = {(row["id"], by): (row[column], 1.0) for row in rows if column in row}
        return found | {(own, "held-out loss"): self.measured(version)["loss"]}

    def answers(self, version: Version) -> list[Said]:
        own, before = f"{version.name}/{version.version}", version.tags.get("base_version", "")
        of_prompts = lines(version.tags.get("evaluate_run"), "answers.jsonl")
        of_assistant = lines(version.tags.get(f"run.{self.keeping}"), "answers.jsonl")
        return [*(Said(row["id"], row["prefill"], {own: row[AFTER], before: row[BEFORE]}) for row in of_prompts),
                *(Said(row["id"], row["prompt"], {own: row[AFTER]}) for row in of_assistant)]

    # --- gate ---

    def recorded(self, version: Version, model: str = AFTER) -> Values:
        """(gold score, 1) by prompt and judge."""
        judge, column = version.tags.get("judge.gold"), f"gold_{model}"
        rows = lines(version.tags.get("evaluate_run"), "answers.jsonl")
        return {(row["id"], judge): (row[column], 1.0) for row in rows if column in row}

    def before(self, version: Version, own: Values, today: str) -> Paired:
        from ajuste.judging.gate import Paired

        made_from = version.tags.get("base_version", "the version")
        return Paired(f"{made_from} that it was made from", own, self.recorded(version, BEFORE))

    def beside(self, challenger: Version, champion: Version, own: Values) -> Paired:
        """Its answers are samples that the gold scorer judged; they are not made again."""
        from ajuste.judging.gate import Paired

        name = f"champion {champion.version}"
        if f"{champion.name}/{champion.version}" == challenger.tags.get("base_version"):
            return Paired(name, own, self.recorded(challenger, BEFORE))
        if champion.tags.get("method") != self.method:
            return Paired(name, own, {}, "it has no gold score on these prompts, and the challenger was not made "
                          "from it")  # fmt: skip
        if any(champion.tags.get(tag) != challenger.tags.get(tag) for tag in ("judge.gold", "test_rows")):
            return Paired(name, own, {}, "its gold scores are of other prompts or of another gold scorer")
        return Paired(name, own, self.recorded(champion))

    def apart(self) -> str:
        return ("it was made with PPO, which raises the held-out loss on purpose; an SFT version has no gold score on "
                "its prompts")

    def kept(self, challenger: Version, champion: Version | None, others: dict[str, Values]) -> list[Kept]:
        from ajuste.judging.gate import Kept, Paired

        own, before = (self.measured(challenger, model) for model in (AFTER, BEFORE))
        if not own["loss"]:
            return []
        made_from = challenger.tags.get("base_version", "")
        other = f"{made_from or 'the version'} that it was made from"
        found = [Kept(figure, Paired(other, own[figure], before[figure])) for figure in own if own[figure]]
        if champion is not None and f"{champion.name}/{champion.version}" != made_from:
            found += [Kept(figure, Paired(f"champion {champion.version}", own[figure], others[figure]), "champion ")
                      for figure in own if own[figure] and others.get(figure, {}).keys() == own[figure].keys()]
        return found

    def measured(self, version: Version, model: str = AFTER) -> dict[str, Values]:
        """What stage `assistant_ppo` found of each held-out row, prompt with rules and reference."""
        run = version.tags.get(f"run.{self.keeping}")
        return {
            "loss": {row["row_id"]: (row[model], float(row["tokens"])) for row in table(run, "rows.parquet")},
            "rules": {row["id"]: (float(row[f"kept_{model}"]), 1.0) for row in lines(run, "answers.jsonl")},
            "rouge": {row["row_id"]: (row[f"rougeL_{model}"], 1.0) for row in lines(run, "references.jsonl")},
        }  # fmt: skip

    # --- report ---

    def findings(self) -> list[tuple[str, str, str]]:
        folder = Path("artifacts/adapters/ppo")
        result = facts.read_json(EVALUATED / "ppo/ppo.json")
        if not (result or facts.read_json(folder / "ajuste.json") or (folder / "history.jsonl").is_file()):
            return []
        asked = _gained(result) if result else [("unknown", "PPO: better", "Not evaluated yet.")]
        path = folder / "alarms.json"
        if path.is_file() and (alarms := json.loads(path.read_text(encoding="utf-8"))):
            asked.append(("warn", "PPO: alarms", f"{len(alarms)}: the run went back and stopped there."))
        return asked


def _gained(result: dict) -> list[tuple[str, str, str]]:
    """Did it learn what it was paid for, is it really better, does it still say different things?"""
    proxy, gold = (result[name]["difference"] for name in ("proxy", "gold"))
    rose = proxy["low"] > 0
    asked = [("good" if rose else "warn" if proxy["high"] > 0 else "bad", "PPO: learnt what it was paid for",
              f"Proxy reward {said(proxy, '+.3f')} at {result['kl']['value']:.1f} nats a response.")]
    if gold["high"] < 0:
        state, why = "bad", "Worse for a scorer that training never saw: reward hacking." if rose else "Worse."
    elif gold["low"] > 0:
        state, why = "good", "A scorer that training never saw agrees."
    else:
        state, why = "warn", "A scorer that training never saw does not tell the two apart."
    asked.append((state, "PPO: really better", f"Gold score {said(gold, '+.3f')}. {why}"))
    if (ratio := result.get("distinct2", {}).get("ratio")) is not None:
        asked.append(("good" if ratio >= VARIED else "warn", "PPO: still says different things",
                      f"Different bigrams: {ratio:.2f} of what SFT has."))
    return asked


def figures(result: dict) -> dict[tuple[str, str], dict | float]:
    """ppo.json as {(figure, model): interval or number}; model is sft, ppo, difference or ratio."""
    found: dict[tuple[str, str], dict | float] = {}
    for figure in ("proxy", "gold", "length", "ended", "distinct2"):
        for model in (BEFORE, AFTER, "difference", "ratio"):
            if (value := result.get(figure, {}).get(model)) is not None:
                found[figure, model] = value
    if "kl" in result:
        found["kl", AFTER] = result["kl"]
    return found


def test_figures(result: dict) -> dict[str, dict | float]:
    """ppo.json as one level: after PPO by their own names, before it behind `sft_`; gain = after - before.

    The difference of lengths is no gain and is left out.
    """
    found = {}
    for (figure, model), value in figures(result).items():
        if model == "difference":
            found |= {f"{figure}_gain": value} if figure in ("proxy", "gold") else {}
        elif model in (AFTER, BEFORE):
            found[figure if model == AFTER else f"{BEFORE}_{figure}"] = value
        elif model == "ratio":
            found[f"{figure}_ratio"] = value
    return found


PPO = Ppo(
    **SHARED, method="ppo", title="PPO",
    folders="*/ppo", trains="ppo", merge="merge_ppo", evaluate="evaluate_ppo",
    encoded=Path("artifacts/encoded/preferences"), rows="prompts_{split}.parquet", from_another=True,
    best="gold_gain", best_name="gain of the gold score", lower=False,
    metric="gold", rescored=False, forgetting="evaluate_ppo", keeping="assistant_ppo",
    strategies={"ppo": "PPO: a LoRA on the merged SFT model, trained against a reward model with a price on KL"},
    results=("ppo.json", "answers.jsonl", "scores.json", "rows.parquet", "radar.json", "samples.jsonl", "alarms.json",
             "assistant.json", "references.jsonl"),
    figures={
        **{key: title for key, title in FIGURES.items() if not key.startswith("base_") and key != "difference"},
        "gold": "gold score", "sft_gold": "  before PPO", "gold_gain": "  gain", "proxy": "proxy reward",
        "sft_proxy": "  before PPO", "proxy_gain": "  gain", "kl": "KL, nats a response",
        "length": "tokens a response", "sft_length": "  before PPO", "ended": "responses that end",
        "sft_ended": "  before PPO", "distinct2": "distinct bigrams", "sft_distinct2": "  before PPO",
        "distinct2_ratio": "  ratio",
    },
    validation={"gold_gain": ("validation gold gain", "+.3f"), "gold_gain_low": ("  at least", "+.3f"),
                "proxy_gain": ("validation proxy gain", "+.3f"), "kl": ("validation KL", ".2f")},
    pictures={"gold": Picture("gold score", True, None)},
    metrics=(Metric("held-out loss", True, "test rows"), Metric("gold score", False, "prompts"),
             Metric("proxy reward", False, "prompts")),
)  # fmt: skip
