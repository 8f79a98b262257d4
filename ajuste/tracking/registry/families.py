"""The families of registered models, and what differs between them: everything else of the registry is shared.

    classifier    <set>-classifier and <set>-classifier-adapter, from artifacts/*/classify_*
    assistant     assistant and assistant-adapter: a decoder that follows instructions
                    method sft    from artifacts/*/instruct
                    method ppo    from artifacts/*/ppo, made from the SFT version that its tag `base_version` names
    reward        <set>-reward and <set>-reward-adapter, from artifacts/*/reward: how good is a response?

Where a model's scores are read, which of its figures are tags of its version, and by which of them `challenger` is
found, stand here, so that a version's page, the comparison and the report agree.

`challenger` of `assistant`. Held-out loss (SFT) and reward (PPO) have no common scale, and PPO raises the loss on
purpose. So it goes first to the SFT version with the lowest held-out loss on validation. A PPO version takes it over
only from the very version that it was made from, and only if the gold scorer, which neither training saw, puts it above
that version on validation prompts with a 95 % interval that excludes 0; of several the largest gain wins. A PPO that
only raised its own proxy stays behind.
"""

from dataclasses import dataclass
from pathlib import Path

from ajuste.tracking.project import lock
from ajuste.tracking.runs import facts

EVALUATED = Path("artifacts/evaluated")
ASSISTANT = "assistant"  # a registered name, and the kind of what stands there
BEFORE = "sft_"  # of a PPO version's figures: what the version that it was made from has on the same prompts
FIGURES = (  # of a version's test rows, each with its interval where it has one
    *facts.INTERVALS, "loss", "base_loss", "difference", "perplexity", "base_perplexity", "rules", "base_rules",
    "exact_match", "base_exact_match", "rouge1", "base_rouge1", "rougeL", "base_rougeL", "reviews_accuracy",
    "gold", "sft_gold", "gold_gain", "proxy", "sft_proxy", "proxy_gain", "kl", "length", "sft_length", "ended",
    "sft_ended", "distinct2", "sft_distinct2", "distinct2_ratio",
    *(f"accuracy_margin_{margin}" for margin in ("0.5", "1.0", "1.5", "2.5")), "length_correlation",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One kind of model, made in one way."""

    kind: str  # the word in the registered name, and MLflow's model type
    method: str  # tag: by what kind of training it was made
    folders: str  # the pattern of its model folders below artifacts/
    trains: str  # the verb that trains it
    merge: str  # the stage that merges it
    evaluate: str  # the stage that tests it
    encoded: Path  # its rows
    best: str  # the figure of its validation that ranks its versions
    best_name: str  # in words
    lower: bool  # whether a lower figure is better
    rows: str = "{split}.parquet"  # the file of its rows of a split


CLASSIFIER = Family(
    "classifier", "classify", "*/classify_*", "classify", "merge_classify", "evaluate_classify",
    Path("artifacts/encoded/reviews"), "macro_f1", "macro-F1", False,
)  # fmt: skip
SFT = Family(
    ASSISTANT, "sft", "*/instruct", "instruct", "merge_instruct", "evaluate_instruct",
    Path("artifacts/encoded/instructions"), "loss", "loss", True,
)  # fmt: skip
PPO = Family(
    ASSISTANT, "ppo", "*/ppo", "ppo", "merge_ppo", "evaluate_ppo", Path("artifacts/encoded/preferences"),
    "gold_gain", "gain of the gold score", False, "prompts_{split}.parquet",
)  # fmt: skip
REWARD = Family(
    "reward", "reward", "*/reward", "reward", "merge_reward", "reward", Path("artifacts/encoded/preferences"),
    "accuracy", "pair accuracy", False,
)  # fmt: skip
FAMILIES = (CLASSIFIER, SFT, REWARD, PPO)  # each after those whose versions it names


def of_folder(folder: Path) -> Family | None:
    """The family of a stage's out, None if it holds no model to register."""
    if folder.parent.name not in ("adapters", "merged"):
        return None
    return next((family for family in FAMILIES if folder.match(f"artifacts/{family.folders}")), None)


def of_stage(stage: str) -> Family | None:
    """The family whose models the stage trains or merges."""
    verb = stage.partition("_")[0]
    return next((family for family in FAMILIES if stage == family.merge or verb == family.trains), None)


def kind_of(name: str) -> str:
    """The kind of a registered name: classifier, assistant or reward."""
    return name.removesuffix("-adapter").rpartition("-")[2]


def scores(family: Family, folder: Path, md5: str, strategy: str) -> tuple[dict[str, float], list[str]]:
    """The test figures of these very weights by tag, and the stages that judged them; ({}, []) if none did.

    "test.accuracy", "test.accuracy.low", ... and, of an assistant, "forgetting.<set>": F = score before - after.
    """
    if family is SFT:
        return _sft_scores(folder, md5)
    # a reward model is judged where it is trained
    if not (_made_of_the_judged(folder, md5) if family is REWARD else judged(family.evaluate, folder, md5)):
        return {}, []
    if family is CLASSIFIER:
        result = facts.read_json(EVALUATED / "classify" / f"{strategy}.json")
        found, rows = facts.evaluated(result), result.get("rows")
    elif family is REWARD:
        result = facts.read_json(Path("artifacts/adapters") / folder.name / "evaluation.json").get("test", {})
        found, rows = facts.flat_intervals(facts.reward_figures(result)), result.get("pairs")
    else:
        result = facts.read_json(EVALUATED / "ppo" / "ppo.json")
        found, rows = facts.flat_intervals(ppo_scores(result)), result.get("prompts")
    tags = _tags("test", found) | ({"test.rows": rows} if rows else {})
    if family is PPO:
        forgotten = facts.read_json(EVALUATED / "ppo" / "scores.json").get("F", {})
        tags |= _tags("forgetting", facts.flat_intervals(forgotten))
    return (tags, [family.evaluate]) if found else ({}, [])


def _sft_scores(folder: Path, md5: str) -> tuple[dict[str, float], list[str]]:
    found, by = {}, []
    if judged(SFT.evaluate, folder, md5):
        result = facts.read_json(EVALUATED / "instruct" / "instruct.json")
        found |= _tags("test", facts.flat_intervals(assistant_scores(result)))
        if rows := result.get("held_out", {}).get("instruct", {}).get("rows"):
            found["test.rows"] = rows
        by.append(SFT.evaluate)
    if judged("forgetting_instruct", folder, md5):
        result = facts.read_json(EVALUATED / "forgetting_instruct" / "scores.json")
        found |= _tags("forgetting", facts.flat_intervals(result.get("F", {})))
        by.append("forgetting_instruct")
    return (found, by) if found else ({}, [])


def assistant_scores(result: dict) -> dict[str, dict | float]:
    """instruct.json as one level of figures: of the tuned model by their own names, of its base behind `base_`.

    `difference` is that of the held-out losses, tuned - base.
    """
    found = {}
    for (figure, model), value in facts.instruct_figures(result).items():
        if model in ("instruct", "base"):
            found[figure if model == "instruct" else f"base_{figure}"] = value
        elif (figure, model) == ("loss", "difference"):
            found["difference"] = value
    return found


def ppo_scores(result: dict) -> dict[str, dict | float]:
    """ppo.json as one level of figures: after PPO by their own names, before it behind `sft_`; gain = after - before.

    The difference of lengths is no gain and is left out.
    """
    found = {}
    for (figure, model), value in facts.ppo_figures(result).items():
        if model == "difference":
            found |= {f"{figure}_gain": value} if figure in ("proxy", "gold") else {}
        elif model in ("ppo", "sft"):
            found[figure if model == "ppo" else f"{BEFORE}{figure}"] = value
        elif model == "ratio":
            found[f"{figure}_ratio"] = value
    return found


def judged(stage: str, folder: Path, md5: str) -> bool:
    """Whether dvc.lock has that stage's run on these very weights."""
    return _names(lock.stages().get(stage, {}).get("deps", []), folder, md5)


def _made_of_the_judged(folder: Path, md5: str) -> bool:
    """Whether these weights were merged from the very adapter that dvc.lock's training wrote, and judged, last."""
    recorded = lock.stages()
    merge = recorded.get(REWARD.merge, {})
    trained = next((out for out in recorded.get(REWARD.trains, {}).get("outs", [])), None)
    if trained is None or not _names(merge.get("outs", []), folder, md5):
        return False
    return _names(merge.get("deps", []), Path(trained["path"]), trained["md5"])


def _names(entries: list[dict], folder: Path, md5: str) -> bool:
    return any(Path(entry["path"]) == folder and entry["md5"] == md5 for entry in entries)


def headline(tags: dict[str, str]) -> str:
    """The one figure of a version that a list shows: ", test accuracy 0.806", "" if it was not tested."""
    if "test.gold_gain" in tags:
        return f", gold {float(tags['test.gold_gain']):+.3f} against {tags.get('base_version', 'its base')}"
    accuracy = "pair accuracy" if tags.get("method") == REWARD.method else "test accuracy"
    for key, name in (("test.accuracy", accuracy), ("test.loss", "held-out loss")):
        if key in tags:
            return f", {name} {float(tags[key]):.3f}"
    return ""


def _tags(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}.{key.replace(':', '.')}": value for key, value in figures.items()}
