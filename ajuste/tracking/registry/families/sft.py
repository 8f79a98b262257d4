"""Assistants by supervised fine-tuning on instructions, from artifacts/*/instruct.

`challenger` is the version with the lowest held-out loss on validation. The gate compares that loss on the test rows,
token by token, and holds a first version against the pretrained base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ajuste.tracking.registry.families import ledgers
from ajuste.tracking.registry.families.assistants import (
    FIGURES,
    LOSS,
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
    Said,
    Tags,
    Values,
    as_tags,
    interval,
    judged,
    number,
)
from ajuste.tracking.runs import facts
from ajuste.tracking.runs.results import lines, table

if TYPE_CHECKING:
    from ajuste.judging.verdicts.gate import Paired
    from ajuste.tracking.registry.version import Version


class Sft(Assistant):
    """All that is said of SFT versions."""

    def scores(self, folder: Path, md5: str, strategy: str) -> tuple[dict[str, float | str], list[str]]:
        found, by = {}, []
        if judged(self.evaluate, folder, md5):
            result = facts.read_json(EVALUATED / "instruct" / "instruct.json")
            found |= as_tags("test", test_figures(result))
            if rows := result.get("held_out", {}).get("instruct", {}).get("rows"):
                found["test.rows"] = rows
            by.append(self.evaluate)
        if judged(self.forgetting, folder, md5):
            found |= forgotten(EVALUATED / "forgetting_instruct" / "scores.json")
            by.append(self.forgetting)
        if aligned := ledgers.measured(self.alignment, folder, md5):
            found |= aligned
            by += [self.alignment, *([ledgers.OF_BASE] if ledgers.base_is_measured(self.merge) else [])]
        return (found, by) if found else ({}, [])

    def run_figures(self, folder: Path) -> dict[str, dict | float]:
        return flat(figures(facts.read_json(folder / "instruct.json"))) | ledgers.run_figures(folder)

    def page(self, tags: Tags) -> list[str]:
        lines = [f"- validation: loss {number(tags, 'validation.loss')}, "
                 f"perplexity {number(tags, 'validation.perplexity', '.3f')}"]
        if "test.loss" in tags:
            lines.append(f"- held-out ({tags.get('test.rows')} rows): loss {interval(tags, 'test.loss')}, of the base "
                         f"{interval(tags, 'test.base_loss')}")
        if "test.rules" in tags:
            lines.append(f"- rules kept: {interval(tags, 'test.rules')}, by the base "
                         f"{interval(tags, 'test.base_rules')}")
        return lines + forgetting_lines(tags) + ledgers.page(tags)

    def headline(self, tags: Tags) -> str:
        return f", held-out loss {float(tags['test.loss']):.3f}" if "test.loss" in tags else ""

    def row_values(self, version: Version) -> dict[tuple[str, str], Values]:
        return {(f"{version.name}/{version.version}", "held-out loss"): self.recorded(version)}

    def answers(self, version: Version) -> list[Said]:
        reference = f"{version.name}/{version.version}"
        return [Said(row["id"], row["prompt"], {reference: row["instruct"]}, row["base"])
                for row in lines(version.tags.get("evaluate_run"), "answers.jsonl")]

    def recorded(self, version: Version) -> Values:
        """(sum of -log p, tokens) by held-out row."""
        return _losses(version, "instruct")

    def before(self, version: Version, own: Values, today: str) -> Paired | None:
        """The pretrained base on the same tokens, where the version's own evaluation has it."""
        from ajuste.judging.verdicts.gate import Paired

        if version.tags.get("test_rows") == today and (others := _losses(version, "base")):
            return Paired("its base", own, others)
        return None

    def measured(self, version: Version) -> dict[str, Values]:
        return {"loss": self.recorded(version)}


def _losses(version: Version, model: str) -> Values:
    return {row["row_id"]: (row[model], float(row["tokens"]))
            for row in table(version.tags.get("evaluate_run"), "rows.parquet")}


def figures(result: dict) -> dict[tuple[str, str], dict | float]:
    """instruct.json as {(figure, model): interval or number}; model is base, instruct, difference or classifier."""
    found = instruction_figures(result)
    for model, scored in (result.get("reviews") or {}).items():  # None: that classifier labels no whole texts
        if isinstance(scored, dict):
            found["reviews_accuracy", model] = scored.get("accuracy", scored)
    return found


def test_figures(result: dict) -> dict[str, dict | float]:
    """instruct.json as one level: of the tuned model by their own names, of its base behind `base_`.

    `difference` is that of the held-out losses, tuned - base.
    """
    found = {}
    for (figure, model), value in figures(result).items():
        if model in ("instruct", "base"):
            found[figure if model == "instruct" else f"base_{figure}"] = value
        elif (figure, model) == ("loss", "difference"):
            found["difference"] = value
    return found


SFT = Sft(
    **SHARED, method="sft", title="SFT",
    folders="*/instruct", trains="instruct", merge="merge_instruct", evaluate="evaluate_instruct",
    encoded=Path("artifacts/encoded/instructions"), from_users=True,
    best="loss", best_name="loss", lower=True, metric="loss", forgetting="forgetting_instruct",
    alignment="alignment_instruct",
    results=("instruct.json", "answers.jsonl", "rows.parquet", "scores.json", ledgers.FILE),
    figures={**FIGURES, "reviews_accuracy": "accuracy on reviews"},
    validation={"loss": ("validation loss", ".4f"), "perplexity": ("validation perplexity", ".3f")},
    pictures={"loss": LOSS},
    metrics=(Metric("held-out loss", True, "test rows"),),
)  # fmt: skip
