"""The model card of a version, by huggingface_hub's own ModelCard, from its records alone.

    model_card(records).content

Every number is one of the records', at 6 digits; what was not measured is said in words. The text that is the same for
every version is here, the frame is _model_card.md.
"""

from pathlib import Path

from ajuste.judging.alignment.ledger import FEW, Ledger
from ajuste.tracking.cards.marks import interval, number, points, table
from ajuste.tracking.cards.records import Records
from ajuste.tracking.registry.describe import in_words

TEMPLATE = Path(__file__).with_name("_model_card.md")
PIPELINES = {"classifier": "text-classification", "assistant": "text-generation", "reward": "text-classification"}
SCORES = ["score", "value", "95 % interval", "corrected for the judge", "better", "n", "judge"]


def model_card(records: Records):
    """The ModelCard of a version."""
    from huggingface_hub import ModelCard, ModelCardData

    name, family, tags = f"{records.name}/{records.version}", records.family, records.tags
    trained = [one.path.removeprefix("data/") for one in records.sets if one.trains]
    results = _results(records, trained)
    data = ModelCardData(
        base_model=tags["base_id"], datasets=trained or None, pipeline_tag=PIPELINES[family.kind], license="other",
        license_name="of-the-base-and-the-data", tags=["ajuste", family.method, tags["strategy"]],
        model_name=name if results else None, eval_results=results or None,
        library_name="peft" if _is_adapter(records) else "transformers",
    )  # fmt: skip
    sections = [
        ("Data", _data(records)), ("Method", _method(records)), ("Metrics", _metrics(records)),
        ("Forgetting", _forgetting(records)), ("Alignment", _alignment(records)), ("Judges", _judges(records)),
        ("Limits", [points(_limits(records))]), ("Memory", _memory(records)), ("Make it again", _again(records)),
    ]  # fmt: skip
    what = family.what(tags) or in_words(tags["strategy"])
    return ModelCard.from_template(data, template_path=str(TEMPLATE), title=name, what=f"{what}.", sections=sections)


def _is_adapter(records: Records) -> bool:
    return records.name.endswith("-adapter") or records.tags.get("served_as") == "adapter"


def _results(records: Records, trained: list[str]) -> list:
    """The test figures as the hub's own model-index has them."""
    from huggingface_hub import EvalResult

    own = trained[0] if trained else records.family.encoded.name
    return [EvalResult(task_type=PIPELINES[records.family.kind], dataset_type=own, dataset_name=own,
                       dataset_split="test", metric_type=key, metric_name=words.strip(),
                       metric_value=float(number(records.tags[f"test.{key}"])))
            for key, words in records.family.figures.items()
            if f"test.{key}" in records.tags and not words.startswith(" ")]  # fmt: skip


def _data(records: Records) -> list[str]:
    if not records.sets:
        return ["dvc.lock names no set above the stage that made this version."]
    rows = [[f"`{one.path}`", ", ".join(one.trains) or "no", ", ".join(one.judges) or "no", f"`{one.digest}`",
             one.licence] for one in records.sets]
    return [table(["set", "trains", "judges", "DVC's digest", "licence"], rows),
            "Files, packages and rows of each set: the data card beside this one, `DATA_CARD.md`."]


def _method(records: Records) -> list[str]:
    tags = records.tags
    said = [f"method `{tags['method']}`, strategy `{tags['strategy']}`, made by stage `{tags['stage']}`",
            f"trained {number(tags['parameters.trainable'])} of {number(tags['parameters.total'])} parameters",
            f"base `{tags['base_id']}`, sha256 `{tags['base_sha256']}`"
            + (f", in the package with sha256 `{records.base.sha256}`: {records.base.said}" if records.base else "")]
    said += [f"made from the registered version `{tags['base_version']}`"] if "base_version" in tags else []
    if "proof.max_logit_difference" in tags:
        said.append(f"merged, and proved on the saved bytes: largest logit difference "
                    f"{number(tags['proof.max_logit_difference'])} over {number(tags['proof.rows'])} rows")
    said += [f"its adapter is version {tags['adapter_version']} of `{records.name}-adapter`"] if (
        "adapter_version" in tags) else []
    params = [[f"`{key}`", f"`{value}`"] for key, value in sorted(records.params.items()) if value]
    return [points(said), table(["parameter", "value"], params) if params else "No parameter is recorded."]


def _metrics(records: Records) -> list[str]:
    tags, rows = records.tags, []
    for key in sorted(tags):
        if key.startswith("test.") and not key.endswith((".low", ".high", ".rows")):
            figure = key.removeprefix("test.")
            rows.append([_words(records, figure), *interval(tags, key, f"{key}.low", f"{key}.high")])
    parts = []
    if rows:
        n = f", of {number(tags['test.rows'])} rows or prompts" if "test.rows" in tags else ""
        parts += [f"On the test split{n}, which trained nothing and chose nothing:",
                  table(["figure", "value", "95 % interval"], rows)]
    else:
        parts.append("No evaluation of these very weights on the test split is recorded.")
    chosen = [[key.removeprefix("validation."), number(tags[key])] for key in sorted(tags)
              if key.startswith("validation.")]
    return parts + (["On validation, by which versions are chosen:", table(["figure", "value"], chosen)] if chosen
                    else [])


def _words(records: Records, figure: str) -> str:
    words = records.family.figures.get(figure)
    return f"{words.strip()} (`{figure}`)" if words else f"`{figure}`"


def _forgetting(records: Records) -> list[str]:
    tags = records.tags
    lost = [key for key in sorted(tags) if key.startswith("forgetting.") and not key.endswith((".low", ".high"))]
    if not lost:
        return ["Not measured: no control set was scored before and after this training."]
    return ["F = score before - score after on control sets that no stage trains on; above 0 is forgotten:",
            table(["control set", "F", "95 % interval"],
                  [[key.removeprefix("forgetting."), *interval(tags, key, f"{key}.low", f"{key}.high")]
                   for key in lost])]


def _alignment(records: Records) -> list[str]:
    if not records.family.talks:
        return ["Not asked: this model answers nobody in words, it labels or scores texts."]
    parts = []
    if records.ledger is None:
        parts.append("Not measured: no alignment stage has run on these very weights. Do not take it for harmless.")
    else:
        parts += [_few(records.ledger), table(SCORES, _scores(records.ledger))]
    if not records.probes:
        parts.append("No outside suite was run on these weights; `ajuste probe` runs garak and lm-eval.")
    for how, found in records.probes:
        parts += [f"{how.suite} `{how.version}`, asked of the {how.how}, at most {how.limit} prompts or rows each:",
                  table(SCORES, _scores(found))]
    return parts


def _few(found: Ledger) -> str:
    few = sum(score.few for score in found.main())
    return f"{len(found.main())} scores, of which {few} rest on fewer than {FEW} units."


def _scores(found: Ledger) -> list[list[str]]:
    rows = []
    for score in found.main():
        corrected = "not corrected"
        if score.corrected:
            value, bounds = interval(score.corrected.model_dump())
            corrected = f"{value} ({bounds})"
        rows.append([f"{score.h}: `{score.name}`", *interval(score.model_dump()), corrected, score.better,
                     f"{score.n}" + (" (few)" if score.few else ""), score.judge or "none is needed"])
    return rows


def _judges(records: Records) -> list[str]:
    found = []
    for judge in records.judges:
        right = judge.right
        known = f"right in {interval(right)[0]} ({interval(right)[1]}) of {number(right['rows'])} rated texts" if (
            right and "rows" in right) else "how often it is right is not on its card"
        found.append(f"`{judge.name}`, DVC's digest `{judge.digest}`: {known}")
    ledgers = [one for one in (records.ledger, *(ledger for _, ledger in records.probes)) if one]
    named = sorted({score.judge for one in ledgers for score in one.main() if score.judge})
    found += [f"`{name}`, of the alignment scores that name it" for name in named]
    return [points(found) if found else "No model and no rule judged it: its figures come from labels and "
                                        "log-probabilities."]


def _limits(records: Records) -> list[str]:
    tags = records.tags
    said = [f"Texts are cut at {number(tags['max_tokens'])} tokens.",
            "Its figures are of the test split of its own data: other texts, languages and users were not measured, "
            "unless a score above says so.",
            "What its base cannot do, and what its base learnt that it should not have, it has taken over."]
    if tags.get("quantisation", "none") != "none":
        said.append(f"It was trained on a base in `{tags['quantisation']}`: on another base answers differ.")
    if tags.get("dirty") == "true":
        said.append("It was made with uncommitted changes: the commit below is not all of its code.")
    if records.family.talks:
        said.append("It can write false, harmful or private text; no score above is a guarantee.")
    if any("research" in one.licence.lower() or "not covered" in one.licence.lower() for one in records.sets
           if one.trains):
        said.append("Some of its training data is for research, or its own rights are not cleared: read the licences "
                    "before any other use.")
    return said


def _memory(records: Records) -> list[str]:
    rows = [[f"`{cost.stage}`", number(cost.seconds) if cost.seconds is not None else "not measured",
             number(cost.peak_memory_mb) if cost.peak_memory_mb is not None else "not measured"]
            for cost in records.costs]
    return [f"Its files have {number(records.tags['size_bytes'])} bytes.",
            table(["stage", "seconds", "peak memory, MB"], rows)]


def _again(records: Records) -> list[str]:
    tags = records.tags
    commit = tags.get("git_commit")
    said = [f"code: commit `{commit}`" if commit else "code: it was not in git, so nobody can make it again",
            f"stage `{tags['stage']}`, key `{tags['stage_key']}`: `dvc repro {tags['stage']}` at that commit",
            f"by one command, compared byte by byte: `ajuste reproduce models:/{records.name}/{records.version}`",
            f"sha256 of the weights: `{tags['sha256']}`",
            "stages above it, in order: " + ", ".join(f"`{stage}`" for stage in records.stages)]
    return [points(said)]
