"""What all assistants share: decoders that follow instructions, by whatever method they were trained.

They stand under one registered name, `assistant`, with tag `method`. Their methods have no common scale: held-out loss
(SFT) is raised on purpose by a training against a reward. So `challenger` goes first to the best version of the method
that starts from a pretrained base, and a method that is made from such a version takes over from that very version
only, by a rule of its own (ajuste/tracking/registry/rank.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ajuste.tracking.registry.families.family import Family, Picture, Tags, as_tags, interval
from ajuste.tracking.runs import facts

NAME = "assistant"  # the registered name, and the kind of what stands there
FIGURES = {  # of an instruction evaluation's test rows
    "loss": "held-out loss", "base_loss": "  of the base", "difference": "  tuned - base",
    "perplexity": "held-out perplexity", "base_perplexity": "  of the base", "rules": "rules kept",
    "base_rules": "  by the base", "exact_match": "exact match", "base_exact_match": "  of the base",
    "rouge1": "ROUGE-1", "base_rouge1": "  of the base", "rougeL": "ROUGE-L", "base_rougeL": "  of the base",
}  # fmt: skip
LOSS = Picture("held-out loss, nats a token", False, "loss")
SHARED: dict = {
    "kind": NAME, "registered": NAME,
    "examples": {"prompt": ["What is the capital of France?", "Give three tips for staying healthy."]},
    "answers_with": (("string", "answer"), ("long", "tokens")),
}  # fmt: skip


class Assistant(Family):
    """What is said of every assistant."""

    talks: ClassVar[bool] = True

    def own_tags(self, card: dict, whole: bool) -> dict[str, object]:
        base = card["base"]
        return {"tokenizer_sha256": base["tokenizer_sha256"], "template_sha256": base["template_sha256"],
                "quantisation": card.get("quantisation") or "none", "served_as": "whole" if whole else "adapter"}

    def about(self, name: str) -> list[str]:
        return ["Decoders that follow instructions: a prompt in, an answer out.", "",
                "- `challenger` is the best on *validation*; `champion` is what a promotion made of it",
                f"- as a chat: `ajuste chat`; two versions' answers to the same prompts: `ajuste compare {name}`",
                f'- in Python: `mlflow.pyfunc.load_model("models:/{name}@challenger").predict('
                '["What is the capital of France?"])`']


def instruction_figures(result: dict) -> dict[tuple[str, str], dict | float]:
    """held_out, references and rules of an instruction evaluation as {(figure, model): interval or number}."""
    found: dict[tuple[str, str], dict | float] = {}
    for model, held in result.get("held_out", {}).items():
        if model == "difference":
            found["loss", model] = held
        else:
            found |= {(key, model): held[key] for key in ("loss", "perplexity") if key in held}
    for model, scores in result.get("references", {}).items():
        found |= {(key, model): value for key, value in scores.items()}
    for model, kept in result.get("rules", {}).items():
        found["rules", model] = kept.get("passed", {})
    return found


def forgotten(path: Path) -> dict[str, float]:
    """scores.json of a forgetting stage as tags: forgetting.<set>, F = score before - score after."""
    return as_tags("forgetting", facts.read_json(path).get("F", {}))


def forgetting_lines(tags: Tags) -> list[str]:
    """The line of a version's page about its control sets; [] where none was measured."""
    lost = [key for key in sorted(tags) if key.startswith("forgetting.") and not key.endswith((".low", ".high"))]
    if not lost:
        return []
    figures = ", ".join(f"{key.partition('.')[2]} {interval(tags, key)}" for key in lost)
    return [f"- forgetting, F = score before - score after: {figures}"]


def flat(figures: Mapping[tuple[str, str], dict | float]) -> dict[str, dict | float]:
    """{(figure, model): value} -> {"figure/model": value}, as metrics are named."""
    return {f"{figure}/{model}": value for (figure, model), value in figures.items()}
