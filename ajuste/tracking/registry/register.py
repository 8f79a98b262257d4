"""From model folders to registered versions: find-or-create by stage key, the merge's proof, the challenger.

For every model folder that dvc.lock names, or a study's (ajuste/tracking/registry/families/ says which; first those
that others are made from), in this order:

    find      a version with this stage key: nothing is copied, only its test metrics are brought up to date
    check     the folder is what dvc.lock names; a merged one has a passing proof of these very bytes, or it is refused;
              one that was not merged is, byte for byte, what was trained, and its proof says why
    log       MLflow's logged model of the stage's run: a whole one as pyfunc from code, an adapter as PEFT wrote it
    create    the version with all its tags, in one transaction, so a kill leaves a whole version or none
    cards     model card and data card, from the version's records (ajuste/tracking/cards/)
    rank      `challenger` goes to the best on validation (ajuste/tracking/registry/rank.py)

What was trained on a merged assistant (as a reward model is) names that assistant's version by the sha256 of its
weights, in tag `base_version`.
"""

import math
from collections.abc import Collection
from pathlib import Path

from ajuste.core import hashes
from ajuste.core.errors import DataError
from ajuste.core.stages import md5_of
from ajuste.tracking.cards import attached as cards
from ajuste.tracking.project import lock, raw_data
from ajuste.tracking.registry.describe import describe_name, describe_version
from ajuste.tracking.registry.families import all as families
from ajuste.tracking.registry.families.assistants import NAME as ASSISTANT
from ajuste.tracking.registry.logged import Model, logged_model, weights_of
from ajuste.tracking.registry.moves import model_of, versions_of
from ajuste.tracking.registry.rank import rank
from ajuste.tracking.registry.scores import log_scores, rows_digest, scores_of, stage_of, text
from ajuste.tracking.registry.tags import fold, unfold
from ajuste.tracking.runs import facts, runs
from ajuste.tracking.runs.store import client, experiment_id, locked


def register_all(parent: str | None, stages: Collection[str] | None = None) -> list[tuple[str, str]]:
    """(name, version) of every version that is new, of all stages or of some. Raises DataError for a refused one, after
    all others are done."""
    new, refused, adapters = [], [], {}
    found = [model for model in models() if stages is None or model.stage in stages]
    for model in found:
        run_id = runs.record(model.stage, parent)
        scores = scores_of(model, parent)
        try:
            number, created = find_or_create(model, run_id, scores, adapters)
        except DataError as error:
            refused.append(str(error))
            continue
        if model.is_adapter:
            adapters[model.folder] = number
        if created:
            new.append((model.name, number))
        log_scores(model, run_id, number, scores)
        cards.attach(model, number, params_of(model))
    for name in sorted({model.name for model in found if not model.is_adapter}):
        rank(name)
    if refused:
        raise DataError("; ".join(refused))
    return new


def refresh_cards(name: str, number: str) -> bool:
    """Write the cards of a version anew, after something was measured of it; False if dvc.lock does not name it or they
    say that already."""
    key = unfold(client().get_model_version(name, number).tags).get("stage_key")
    return any(cards.attach(model, number, params_of(model)) for model in models()
               if (model.name, model.key) == (name, key))


def unfinished(stages: Collection[str]) -> bool:
    """Whether a run that ended too early left something of these stages: a model without a version, or a version that
    nobody has ranked."""
    found = [model for model in models() if model.stage in stages]
    for name in sorted({model.name for model in found}):
        own = [model for model in found if model.name == name]
        versions = versions_of(name)
        known = {unfold(version.tags)["stage_key"] for version in versions}
        if not known.issuperset(model.key for model in own):
            return True
        if not own[0].is_adapter and any("unranked" in version.tags for version in versions):
            return True
    return False


def models() -> list[Model]:
    """The model folders that dvc.lock or a study's names and that are there, by family, adapters first."""
    found = []
    for stage, entry in lock.every().items():
        for out in entry.get("outs", []):
            folder = Path(out["path"])
            family = families.of_folder(folder)
            card = facts.read_json(folder / "ajuste.json") if family else {}
            if not card:
                continue
            deps = [Path(dep["path"]) for dep in entry.get("deps", [])]
            trained = folder.parents[1] / "adapters" / folder.name  # of a served one: what it was merged from
            trained = trained if trained != folder and trained in deps else None
            model = Model(family, stage, folder, out["md5"], lock.stage_key(stage), card, trained)
            if not (model.is_adapter and model.is_whole):  # of full fine-tuning: its copy is what is served
                found.append(model)
    return sorted(found, key=lambda model: (families.FAMILIES.index(model.family), not model.is_adapter, model.stage))


# --- one version ------------------------------------------------------------------------------------------------------


def find_or_create(model: Model, run_id: str, scores: dict[str, str], adapters: dict[Path, str]) -> tuple[str, bool]:
    """The number of the model's version and whether it is new."""
    opened, experiment = client(), experiment_id()
    with locked():
        _name(model)
        same = versions_of(model.name, f"tags.stage_key='{model.key}'")
        if same:
            oldest = same[0]
            # equal inputs may have given other bytes, on another kind of CPU: then these scores are not its own
            if unfold(oldest.tags).get("dvc") == model.md5:
                _bring_up_to_date(oldest, scores)
            return str(oldest.version), False
        if md5_of(model.folder) != model.md5:
            raise DataError(f"{model.folder} is not what dvc.lock names, so it is not registered: "
                            f"`dvc checkout {model.folder}` brings it back")
        tags = {**_tags(model, adapters), **scores, "unranked": "true"}
        if model.trained:
            tags |= {f"proof.{key}": text(value) for key, value in passing_proof(model).items()}
        model_id, location = logged_model(model, run_id, experiment, params_of(model))
        tags["model_id"] = model_id
        version = opened.create_model_version(
            model.name, location, run_id, tags=fold(tags), description=describe_version(model.name, tags),
            model_id=model_id,
        )
        return str(version.version), True


def params_of(model: Model) -> dict[str, str]:
    """The params of the training; for a merged model those of its adapter, and those of the merge behind `merge.`."""
    own = facts.params(model.stage, lock.entry(model.stage))
    if not model.trained:
        return own
    trained = stage_of(model.trained)
    merge = {key if key.startswith("compute.") else f"merge.{key}": value for key, value in own.items()}
    return {**facts.params(trained, lock.entry(trained)), **merge}


def passing_proof(model: Model) -> dict:
    """proof.json of a merged model. Raises DataError if it is missing, not of these bytes, or above its tolerance."""
    path, family = model.folder / "proof.json", model.family
    proof = facts.read_json(path)
    again = f"run `dvc repro --force --single-item {family.merge}`"
    if not proof:
        raise DataError(f"{model.folder} is refused: {path} is missing: {again}")
    if proof.get("merged") is False:
        return _copied(model, proof, again)
    made_from = {
        "merged_sha256": model.folder / "model.safetensors",
        "adapter_sha256": model.trained / "adapter_model.safetensors",
    }
    for key, file in made_from.items():
        if proof.get(key) != sha256_of(file):
            raise DataError(f"{model.folder} is refused: `{key}` of {path} is not the sha256 of {file}: {again}")
    if proof.get("base_sha256") != model.card["base"]["sha256"]:
        raise DataError(f"{model.folder} is refused: {path} was made with another base than the adapter's: {again}")
    difference, tolerance = proof.get("max_logit_difference", math.nan), proof.get("tolerance", math.nan)
    if not difference <= tolerance:  # nan is refused too
        section = family.merge.replace("_", ".")
        raise DataError(f"{model.folder} is refused: the merged model differs from base and adapter by "
                        f"{difference:.2g} in a logit, above {section}.max_logit_difference {tolerance:.2g}")
    equal = proof.get("equal_greedy_tokens", 1.0)
    if not equal >= proof.get("min_equal_greedy_tokens", 0.0):
        raise DataError(f"{model.folder} is refused: {equal:.2%} of its greedy tokens are those of base and adapter, "
                        f"fewer than {family.merge.replace('_', '.')}.min_equal_tokens")
    return proof


def _copied(model: Model, proof: dict, again: str) -> dict:
    """The proof of a model that was not merged: it must be what was trained, and of a kind that cannot be merged."""
    if model.card.get("mergeable") and weights_of(model.trained).name != "model.safetensors":
        raise DataError(f"{model.folder} is refused: it was not merged, though {model.strategy} can be: "
                        f"{again}")
    if sha256_of(model.weights) != sha256_of(weights_of(model.trained)):
        raise DataError(f"{model.folder} is refused: it was not merged, and is not what {model.trained} holds: "
                        f"{again}")
    return proof


def _tags(model: Model, adapters: dict[Path, str]) -> dict[str, str]:
    """What a version says of itself. All values are text; numbers as JSON writes them."""
    card, base = model.card, model.card["base"]
    tags = {
        "stage_key": model.key, "stage": model.stage, "strategy": model.strategy, "method": model.family.method,
        **model.family.own_tags(card, model.is_whole), "max_tokens": card["max_tokens"],
        "sha256": sha256_of(model.weights), "weights": model.weights.name,
        "base_id": base["id"], "base_sha256": base["sha256"],
        "size_bytes": sum(file.stat().st_size for file in model.folder.rglob("*") if file.is_file()),
        **{f"parameters.{key}": value for key, value in card["parameters"].items()},
        **{f"validation.{key}": value for key, value in card["validation"].items()},
        "validation_rows": rows_digest(model.family, "validation"),
        "data": raw_data.digest(), "dvc": model.md5,
        "git_commit": facts.commit()["ajuste.git_commit"], "dirty": facts.commit()["ajuste.dirty"],
    }
    if made_from := _assistant_with(base["sha256"]):
        tags["base_version"] = made_from
    if (model.folder / "head.safetensors").exists():
        tags["head_sha256"] = sha256_of(model.folder / "head.safetensors")
    if model.trained and model.trained in adapters:
        tags["adapter_version"] = adapters[model.trained]
    return {key: text(value) for key, value in tags.items()}


def _assistant_with(sha256: str) -> str | None:
    """The registered assistant whose weights these are: "assistant/3"; None of a pretrained base."""
    found = versions_of(ASSISTANT, f"tags.sha256='{sha256}'")
    return f"{ASSISTANT}/{found[0].version}" if found else None


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file. Raises DataError if it is missing."""
    try:
        return hashes.sha256_of(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: `dvc checkout {path.parent}` brings it back") from None


def _name(model: Model) -> None:
    """The registered name, made if missing."""
    if model_of(model.name) is None:
        client().create_registered_model(model.name, description=describe_name(model.name))


def _bring_up_to_date(version: object, scores: dict[str, str]) -> None:
    """A new evaluation of a registered model: its tags and its description."""
    tags = {**unfold(version.tags), **scores}
    for key, value in fold(tags).items():
        if version.tags.get(key) != value:
            client().set_model_version_tag(version.name, version.version, key, value)
    note = describe_version(version.name, tags)
    if note != version.description:
        client().update_model_version(version.name, version.version, note)
