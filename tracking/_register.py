"""From model folders to registered versions: find-or-create by stage key, the merge's proof, the challenger.

For every out artifacts/adapters/classify_* and artifacts/merged/classify_* of dvc.lock, in this order:

    find      a version with this stage key: nothing is copied, only its test metrics are brought up to date
    check     the folder is what dvc.lock names; a merged one has a passing proof of these very bytes, or it is refused
    log       MLflow's logged model of the stage's run: a served one as pyfunc from code, an adapter as PEFT wrote it
    create    the version with all its tags, in one transaction, so a kill leaves a whole version or none
    rank      `challenger` goes to the best on validation; tag `unranked` says until then that this is still to be done
"""

import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path

from tasks._params import md5_of
from tasks._stage import DataError
from tracking import _facts, runs, versions
from tracking._describe import describe_name, describe_version
from tracking._logged import Model, logged_model
from tracking._store import client, experiment_id, locked
from tracking._tags import fold, unfold

EVALUATED = Path("artifacts/evaluated/classify")
ENCODED = Path("artifacts/encoded/reviews")  # named by the stage's variant, whatever the set is called


def register_all(parent: str | None) -> list[tuple[str, str]]:
    """(name, version) of every version that is new. Raises DataError for a refused one, after all others are done."""
    new, refused, adapters = [], [], {}
    found = models()
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
    for name in sorted({model.name for model in found if not model.is_adapter}):
        rank(name)
    if refused:
        raise DataError("; ".join(refused))
    return new


def models() -> list[Model]:
    """The model folders that dvc.lock names and that are there, adapters first."""
    found = []
    for stage, entry in versions.lock().items():
        for out in entry.get("outs", []):
            folder = Path(out["path"])
            if folder.match("artifacts/*/classify_*") and folder.parent.name in ("adapters", "merged"):
                card = _facts.read_json(folder / "ajuste.json")
                deps = [Path(dep["path"]) for dep in entry.get("deps", [])]
                adapter = next((dep for dep in deps if dep.parent.name == "adapters"), None)
                if card:
                    found.append(Model(stage, folder, out["md5"], versions.stage_key(stage), card, adapter))
    return sorted(found, key=lambda model: (not model.is_adapter, model.stage))


# --- one version ------------------------------------------------------------------------------------------------------


def find_or_create(model: Model, run_id: str, scores: dict[str, str], adapters: dict[Path, str]) -> tuple[str, bool]:
    """The number of the model's version and whether it is new."""
    opened, experiment = client(), experiment_id()
    with locked():
        _name(model)
        same = opened.search_model_versions(f"name='{model.name}' and tags.stage_key='{model.key}'")
        if same:
            oldest = min(same, key=lambda version: int(version.version))
            # equal inputs may have given other bytes, on another kind of CPU: then these scores are not its own
            if unfold(oldest.tags).get("dvc") == model.md5:
                _bring_up_to_date(oldest, scores)
            return str(oldest.version), False
        if md5_of(model.folder) != model.md5:
            raise DataError(f"{model.folder} is not what dvc.lock names, so it is not registered: "
                            f"`dvc checkout {model.folder}` brings it back")
        tags = {**_tags(model, adapters), **scores, "unranked": "true"}
        if model.adapter:
            tags |= {f"proof.{key}": _text(value) for key, value in passing_proof(model).items()}
        model_id, location = logged_model(model, run_id, experiment, params_of(model))
        tags["model_id"] = model_id
        version = opened.create_model_version(
            model.name, location, run_id, tags=fold(tags), description=describe_version(model.name, tags),
            model_id=model_id,
        )
        return str(version.version), True


def params_of(model: Model) -> dict[str, str]:
    """The params of the training; for a merged model those of its adapter, and those of the merge behind `merge.`."""
    own = _facts.params(model.stage, versions.stage_lock(model.stage))
    if not model.adapter:
        return own
    trained = _stage_of(model.adapter)
    merge = {key if key.startswith("compute.") else f"merge.{key}": value for key, value in own.items()}
    return {**_facts.params(trained, versions.stage_lock(trained)), **merge}


def _stage_of(folder: Path) -> str:
    """The stage whose out the folder is."""
    return next(stage for stage, entry in versions.lock().items()
                if any(Path(out["path"]) == folder for out in entry.get("outs", [])))


def passing_proof(model: Model) -> dict:
    """proof.json of a merged model. Raises DataError if it is missing, not of these bytes, or above its tolerance."""
    path = model.folder / "proof.json"
    proof = _facts.read_json(path)
    again = "run `dvc repro --force --single-item merge_classify`"
    if not proof:
        raise DataError(f"{model.folder} is refused: {path} is missing: {again}")
    made_from = {
        "merged_sha256": model.folder / "model.safetensors",
        "adapter_sha256": model.adapter / "adapter_model.safetensors",
    }
    for key, file in made_from.items():
        if proof.get(key) != sha256_of(file):
            raise DataError(f"{model.folder} is refused: `{key}` of {path} is not the sha256 of {file}: {again}")
    if proof.get("base_sha256") != model.card["base"]["sha256"]:
        raise DataError(f"{model.folder} is refused: {path} was made with another base than the adapter's: {again}")
    difference, tolerance = proof.get("max_logit_difference", math.nan), proof.get("tolerance", math.nan)
    if not difference <= tolerance:  # nan is refused too
        raise DataError(f"{model.folder} is refused: the merged model differs from base and adapter by "
                        f"{difference:.2g} in a logit, above merge.classify.max_logit_difference {tolerance:.2g}")
    return proof


def _tags(model: Model, adapters: dict[Path, str]) -> dict[str, str]:
    """What a version says of itself. All values are text; numbers as JSON writes them."""
    card, weights = model.card, "adapter_model.safetensors" if model.is_adapter else "model.safetensors"
    tags = {
        "stage_key": model.key, "stage": model.stage, "strategy": card["strategy"], "method": "classify",
        "task": card["task"], "pooling": card["pooling"], "labels": card["labels"], "max_tokens": card["max_tokens"],
        "sha256": sha256_of(model.folder / weights),
        "base_id": card["base"]["id"], "base_sha256": card["base"]["sha256"],
        "size_bytes": sum(file.stat().st_size for file in model.folder.rglob("*") if file.is_file()),
        **{f"parameters.{key}": value for key, value in card["parameters"].items()},
        **{f"validation.{key}": value for key, value in card["validation"].items()},
        "validation_rows": rows_digest("validation"),
        "data": versions.data_digest(), "dvc": model.md5,
        "git_commit": _facts.commit()["ajuste.git_commit"], "dirty": _facts.commit()["ajuste.dirty"],
    }
    if (model.folder / "head.safetensors").exists():
        tags["head_sha256"] = sha256_of(model.folder / "head.safetensors")
    if model.adapter and model.adapter in adapters:
        tags["adapter_version"] = adapters[model.adapter]
    return {key: _text(value) for key, value in tags.items()}


def rows_digest(split: str) -> str:
    """A digest of which rows a split has: metrics are comparable where it is the same. "" if the split is not there."""
    import pyarrow.parquet as pq

    path = ENCODED / f"{split}.parquet"
    if not path.exists():
        return ""
    ids = sorted(pq.read_table(path, columns=["row_id"])["row_id"].to_pylist())
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file. Raises DataError if it is missing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path} is missing: `dvc checkout {path.parent}` brings it back") from None


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name(model: Model) -> None:
    """The registered name, made if missing."""
    from mlflow.exceptions import MlflowException

    try:
        client().get_registered_model(model.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
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


# --- test metrics and rank -----------------------------------------------------------------------------------------


def scores_of(model: Model, parent: str | None) -> dict[str, str]:
    """The test metrics of a served model as tags; {} if dvc.lock has no evaluation of these very weights."""
    entry = versions.lock().get("evaluate_classify", {})
    judged = any(Path(dep["path"]) == model.folder and dep["md5"] == model.md5 for dep in entry.get("deps", []))
    result = _facts.read_json(EVALUATED / f"{model.card['strategy']}.json") if judged else {}
    scores = {f"test.{key.replace(':', '.')}": _text(value) for key, value in _facts.evaluated(result).items()}
    if scores:
        scores |= {"test_rows": rows_digest("test"), "test.rows": _text(result.get("rows")),
                   "evaluate_run": runs.record("evaluate_classify", parent)}
    return scores


def log_scores(model: Model, run_id: str, number: str, scores: dict[str, str]) -> None:
    """Validation and test metrics on the version's page, and test metrics on the runs that made it.

    With the time of the evaluation, so that doing it again makes no second point.
    """
    from mlflow.entities import Metric

    opened = client()
    tags = unfold(opened.get_model_version(model.name, number).tags)
    if tags.get("dvc") != model.md5:
        return
    named = json.dumps([{"name": model.name, "version": number}])  # MLflow's page of the model finds its version by it
    opened.set_logged_model_tags(tags["model_id"], {"mlflow.modelVersions": named})
    when = opened.get_run(scores["evaluate_run"] if scores else run_id).info.start_time
    test = {f"test/{key[5:].replace('.', '_')}": float(value) for key, value in scores.items() if key[:5] == "test."}
    numbers = {f"validation/{key}": value for key, value in model.card["validation"].items()} | test
    rows = _dataset()
    runs.log(run_id, metrics=[Metric(k, v, when, 0, tags["model_id"], *rows) for k, v in numbers.items()])
    if test and model.adapter:  # the run that trained the adapter: proved to be the same model
        trained = runs.record(_stage_of(model.adapter), None)
        runs.log(trained, metrics=[Metric(k, v, when, 0) for k, v in test.items()])


def _dataset() -> tuple[str | None, str | None]:
    """(name, digest) of the encoded rows, as the runs have them among their inputs."""
    path = ENCODED.as_posix()
    outs = [out for entry in versions.lock().values() for out in entry.get("outs", []) if out["path"] == path]
    return (path, outs[0]["md5"]) if outs else (None, None)


def rank(name: str) -> None:
    """Give `challenger` to the best on validation, if a version is unranked or the alias is missing.

    Only versions whose validation rows are those of the newest one can be compared. The highest macro-F1 wins; equals
    go to the one with fewer trainable parameters, then to the older one.
    """
    opened = client()
    with locked():
        found = sorted(opened.search_model_versions(f"name='{name}'"), key=lambda version: int(version.version))
        current = {alias: str(number) for alias, number in opened.get_registered_model(name).aliases.items()}
        unranked = [version for version in found if "unranked" in version.tags]
        if not found or ("challenger" in current and not unranked):
            return
        facts = {version.version: unfold(version.tags) for version in found}
        rows = facts[(unranked or found)[-1].version].get("validation_rows")
        group = [version for version in found if facts[version.version].get("validation_rows") == rows]

        def order(version: object) -> tuple:
            tags = facts[version.version]
            return -float(tags["validation.macro_f1"]), int(tags["parameters.trainable"]), int(version.version)

        best = min(group, key=order)
        if current.get("challenger") != str(best.version):
            before = f"before it version {current['challenger']}" if "challenger" in current else "the first"
            why = (f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: best validation macro-F1 "
                   f"{float(best.tags['validation.macro_f1']):.4f} of {len(group)} versions, {before}")
            opened.set_model_version_tag(name, best.version, "alias.challenger", why)
            opened.set_registered_model_alias(name, "challenger", best.version)
        for version in unranked:
            opened.delete_model_version_tag(name, version.version, "unranked")
