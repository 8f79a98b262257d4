"""Assistants that were made from an SFT version by a training for preferences: what all such methods share.

Challenger   such a version takes the alias over only from the very version that it was made from (tag `base_version`),
             and only if the gold scorer, which no training saw, puts it above that one with a 95 % interval that
             excludes 0, on validation prompts that did not choose its weights, and so does a second judge, by which
             nothing was chosen (tasks/evaluate/validation.py). Of several, by whatever method, the greatest lower
             bound wins, then the smaller KL, then the smaller cost (ajuste/judging/verdicts/choosing.py); one that is
             a worse assistant than before, or lost its alignment, is out. A policy that only raised its own proxy stays
             behind.
Gate         gold on the test prompts, beside the version that it was made from and the champion. And it must not have
             lost the assistant: held-out loss, rules and ROUGE of the instruction evaluation (stage
             `assistant_<method>`) not worse than before by more than their margins.

In the files of an evaluation (tasks/evaluate/policy.py, tasks/assistant/kept.py) the policy stands under its method's
name, the version before under `sft`. A method is a file beside this one: its words, and what its report asks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ajuste.tracking.registry.families import ledgers
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
    from ajuste.judging.verdicts.choosing import Interval, Judged
    from ajuste.judging.verdicts.gate import Kept, Paired
    from ajuste.tracking.registry.version import Version

BEFORE = "sft"  # the model before in the files of its evaluations
JUDGES = {"gold score": "gold", "proxy reward": "reward"}  # metric -> the tag of the model that judged it
JUDGES_IN_WORDS = {"gold_gain": "gold score", "second_gain": "score by the second judge"}
VARIED = 0.8  # distinct-2 below this share of what it was: the responses have become alike


class Policy(Assistant):
    """All that is said of them."""

    # --- rank and figures ---

    def takes_over(self, tags: Tags) -> str:
        found = self.judged(tags, f"ranked.{self.best}" in tags)
        if not found.gain.low > 0:
            return ""
        return f"its {found.by} on validation is {found.gain.value:.4f} (at least {found.gain.low:.4f}) above"

    def judged(self, tags: Tags, shared: bool) -> Judged:
        from ajuste.judging.verdicts.choosing import Judged

        if not shared:  # the card says bounds as `gold_gain_low`
            return Judged(_interval(tags, f"validation.{self.best}", "_"), JUDGES_IN_WORDS[self.best],
                          _interval(tags, "validation.kl", "_") if "validation.kl" in tags else None)
        gain, by = min(((_interval(tags, f"ranked.{key}", "."), words) for key, words in JUDGES_IN_WORDS.items()
                        if f"ranked.{key}" in tags), key=lambda one: one[0].low)
        return Judged(gain, by, _interval(tags, "ranked.kl", "."))

    def scores(self, folder: Path, md5: str, strategy: str) -> tuple[dict[str, float | str], list[str]]:
        found, by = {}, []
        if judged(self.evaluate, folder, md5):
            result = facts.read_json(EVALUATED / self.method / f"{self.method}.json")
            found |= as_tags("test", test_figures(result, self.method))
            found |= {"test.rows": result["prompts"]} if found and result.get("prompts") else {}
            found |= forgotten(EVALUATED / self.method / "scores.json")
            found |= ranked_figures(facts.read_json(EVALUATED / self.method / "ranking.json"))
            by += [self.evaluate] if found else []
        if judged(self.keeping, folder, md5):
            result = facts.read_json(EVALUATED / f"assistant_{self.method}" / "assistant.json")
            kept = {figure: value for (figure, model), value in instruction_figures(result).items()
                    if model == self.method}
            found |= as_tags("test", kept)
            by += [self.keeping] if kept else []
        if aligned := ledgers.measured(self.alignment, folder, md5):
            found |= aligned
            by.append(self.alignment)
        return (found, by) if found else ({}, [])

    def run_figures(self, folder: Path) -> dict[str, dict | float]:
        return flat(figures(facts.read_json(folder / f"{self.method}.json"), self.method)
                    | instruction_figures(facts.read_json(folder / "assistant.json")))

    # --- words ---

    def challenger_rule(self) -> str:
        return (f"a {self.title} version becomes `challenger` only if the gold scorer and a second judge put it above "
                "the SFT version that it was made from")

    def page(self, tags: Tags) -> list[str]:
        found = [f"- validation: gold {number(tags, 'validation.gold_gain', '+.4f')} above the model before "
                 f"{self.title}, at least {number(tags, 'validation.gold_gain_low', '+.4f')}; KL "
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
        return found + forgetting_lines(tags) + ledgers.page(tags)

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
        for reference, model in ((own, self.method), (version.tags.get("base_version", ""), BEFORE)):
            for metric, judge in JUDGES.items():
                column, by = f"{metric.partition(' ')[0]}_{model}", version.tags.get(f"judge.{judge}")
                found[reference, metric] = {(row["id"], by): (row[column], 1.0) for row in rows if column in row}
        return found | {(own, "held-out loss"): self.measured(version)["loss"]}

    def answers(self, version: Version) -> list[Said]:
        own, before = f"{version.name}/{version.version}", version.tags.get("base_version", "")
        of_prompts = lines(version.tags.get("evaluate_run"), "answers.jsonl")
        of_assistant = lines(version.tags.get(f"run.{self.keeping}"), "answers.jsonl")
        return [*(Said(row["id"], row["prefill"], {own: row[self.method], before: row[BEFORE]}) for row in of_prompts),
                *(Said(row["id"], row["prompt"], {own: row[self.method]}) for row in of_assistant)]

    # --- gate ---

    def recorded(self, version: Version, model: str = "") -> Values:
        """(gold score, 1) by prompt and judge; of the policy itself, or of `model`."""
        judge, column = version.tags.get("judge.gold"), f"gold_{model or self.method}"
        rows = lines(version.tags.get("evaluate_run"), "answers.jsonl")
        return {(row["id"], judge): (row[column], 1.0) for row in rows if column in row}

    def before(self, version: Version, own: Values, today: str) -> Paired:
        from ajuste.judging.verdicts.gate import Paired

        made_from = version.tags.get("base_version", "the version")
        return Paired(f"{made_from} that it was made from", own, self.recorded(version, BEFORE))

    def beside(self, challenger: Version, champion: Version, own: Values) -> Paired:
        """Its answers are samples that the gold scorer judged; they are not made again."""
        from ajuste.judging.verdicts.gate import Paired

        name = f"champion {champion.version}"
        if f"{champion.name}/{champion.version}" == challenger.tags.get("base_version"):
            return Paired(name, own, self.recorded(challenger, BEFORE))
        scored = self.recorded(champion, champion.tags.get("method", ""))
        if not scored and champion.tags.get("method") != self.method:
            return Paired(name, own, {}, "it has no gold score on these prompts, and the challenger was not made "
                          "from it")  # fmt: skip
        if any(champion.tags.get(tag) != challenger.tags.get(tag) for tag in ("judge.gold", "test_rows")):
            return Paired(name, own, {}, "its gold scores are of other prompts or of another gold scorer")
        return Paired(name, own, scored)

    def apart(self) -> str:
        return (f"it was made with {self.title}, which may raise the held-out loss; an SFT version has no gold score "
                "on its prompts")

    def kept(self, challenger: Version, champion: Version | None, others: dict[str, Values]) -> list[Kept]:
        from ajuste.judging.verdicts.gate import Kept, Paired

        own, before = (self.measured(challenger, model) for model in ("", BEFORE))
        if not own["loss"]:
            return []
        made_from = challenger.tags.get("base_version", "")
        other = f"{made_from or 'the version'} that it was made from"
        found = [Kept(figure, Paired(other, own[figure], before[figure])) for figure in own if own[figure]]
        if champion is not None and f"{champion.name}/{champion.version}" != made_from:
            found += [Kept(figure, Paired(f"champion {champion.version}", own[figure], others[figure]), "champion ")
                      for figure in own if own[figure] and others.get(figure, {}).keys() == own[figure].keys()]
        return found

    def measured(self, version: Version, model: str = "") -> dict[str, Values]:
        """What stage `assistant_<method>` found of each held-out row, prompt with rules and reference; of the policy
        itself, or of `model`."""
        run, model = version.tags.get(f"run.{self.keeping}"), model or self.method
        return {
            "loss": {row["row_id"]: (row[model], float(row["tokens"])) for row in table(run, "rows.parquet")},
            "rules": {row["id"]: (float(row[f"kept_{model}"]), 1.0) for row in lines(run, "answers.jsonl")},
            "rouge": {row["row_id"]: (row[f"rougeL_{model}"], 1.0) for row in lines(run, "references.jsonl")},
        }  # fmt: skip

    # --- report ---

    def outcome(self, result: dict) -> list[tuple[str, str, str]]:
        """Is it really better, and does it still say different things? From <method>.json."""
        gold, proxy = result["gold"]["difference"], result["proxy"]["difference"]
        if gold["high"] < 0:
            state = "bad"
            hacked = proxy["low"] > 0
            why = "Worse for a scorer that training never saw: reward hacking." if hacked else "Worse."
        elif gold["low"] > 0:
            state, why = "good", "A scorer that training never saw agrees."
        else:
            state, why = "warn", "A scorer that training never saw does not tell the two apart."
        asked = [(state, f"{self.title}: really better", f"Gold score {said(gold, '+.3f')}. {why}")]
        if (ratio := result.get("distinct2", {}).get("ratio")) is not None:
            asked.append(("good" if ratio >= VARIED else "warn", f"{self.title}: still says different things",
                          f"Different bigrams: {ratio:.2f} of what SFT has."))
        return asked

    def alarms(self) -> list[dict]:
        """alarms.json of the adapter in artifacts/; [] where there is none."""
        path = Path("artifacts/adapters") / self.method / "alarms.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def result(self) -> dict:
        """<method>.json of the evaluation in artifacts/."""
        return facts.read_json(EVALUATED / self.method / f"{self.method}.json")


def figures(result: dict, method: str) -> dict[tuple[str, str], dict | float]:
    """<method>.json as {(figure, model): interval or number}; model is sft, the method, difference or ratio."""
    found: dict[tuple[str, str], dict | float] = {}
    for figure in ("proxy", "gold", "length", "ended", "distinct2"):
        for model in (BEFORE, method, "difference", "ratio"):
            if (value := result.get(figure, {}).get(model)) is not None:
                found[figure, model] = value
    if "kl" in result:
        found["kl", method] = result["kl"]
    return found


def test_figures(result: dict, method: str) -> dict[str, dict | float]:
    """<method>.json as one level: of the policy by their own names, of the one before behind `sft_`; gain = after -
    before.

    The difference of lengths is no gain and is left out.
    """
    found = {}
    for (figure, model), value in figures(result, method).items():
        if model == "difference":
            found |= {f"{figure}_gain": value} if figure in ("proxy", "gold") else {}
        elif model in (method, BEFORE):
            found[figure if model == method else f"{BEFORE}_{figure}"] = value
        elif model == "ratio":
            found[f"{figure}_ratio"] = value
    return found


def ranked_figures(result: dict) -> dict[str, float]:
    """ranking.json as tags: both judges' gains, the KL, and how the answers were drawn."""
    if not result:
        return {}
    gains = {f"{judge}_gain": result[judge]["difference"] for judge in ("gold", "second") if judge in result}
    how = {f"ranked.{key}": result[key] for key in ("prompts", "temperature", "max_new_tokens")}
    return as_tags("ranked", {**gains, "kl": result["kl"]}) | how


def _interval(tags: Tags, key: str, before: str) -> Interval:
    """A figure of the tags with its bounds, key<before>low and key<before>high; one that is not known is the value."""
    from ajuste.judging.verdicts.choosing import Interval

    value = float(tags.get(key, "nan"))
    return Interval(value, *(float(tags.get(f"{key}{before}{bound}", value)) for bound in ("low", "high")))


def described(method: str, title: str) -> dict:
    """What a description says of every policy."""
    return {
        **SHARED, "method": method, "title": title,
        "folders": f"*/{method}", "trains": method, "merge": f"merge_{method}", "evaluate": f"evaluate_{method}",
        "encoded": Path("artifacts/encoded/preferences"), "rows": "prompts_{split}.parquet", "from_another": True,
        "best": "gold_gain", "best_name": "gain of the gold score", "lower": False,
        "metric": "gold", "rescored": False, "forgetting": f"evaluate_{method}", "keeping": f"assistant_{method}",
        "alignment": f"alignment_{method}",
        "figures": {
            **{key: row for key, row in FIGURES.items() if not key.startswith("base_") and key != "difference"},
            "gold": "gold score", "sft_gold": "  before it", "gold_gain": "  gain", "proxy": "proxy reward",
            "sft_proxy": "  before it", "proxy_gain": "  gain", "kl": "KL, nats a response",
            "length": "tokens a response", "sft_length": "  before it", "ended": "responses that end",
            "sft_ended": "  before it", "distinct2": "distinct bigrams", "sft_distinct2": "  before it",
            "distinct2_ratio": "  ratio",
        },
        "pictures": {"gold": Picture("gold score", True, None)},
        "metrics": (Metric("held-out loss", True, "test rows"), Metric("gold score", False, "prompts"),
                    Metric("proxy reward", False, "prompts")),
    }  # fmt: skip


RESULTS = ("answers.jsonl", "scores.json", "rows.parquet", "alarms.json", "assistant.json", "references.jsonl",
           "ranking.json", "ranking.jsonl")  # fmt: skip
GOLD = {"gold_gain": ("validation gold gain", "+.3f"), "gold_gain_low": ("  at least", "+.3f")}
KL = {"kl": ("validation KL", ".2f")}
