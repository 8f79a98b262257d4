"""What is to be made again: a git revision with its dvc.lock, or a registered version with what its run recorded.

Of a version the claim is: the commit in its tags; dvc.lock and params.yaml as the run of its stage keeps them (a preset
changes params.yaml without a commit); raw data by the digest in its tags; of the lock its stage and what that stage
needs, not the whole pipeline. Before anything runs the record itself is checked: the lock against the digest that the
run has of it, the stage against the version's stage key, and the registered files against the recorded hash.

A version that was made with uncommitted changes (tag `dirty`) can be made again if those touched none of its inputs, or
only params.yaml and data.dvc, which are recorded: `ajuste/tracking/again/inputs.py` says which file was touched.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from ajuste.core.errors import DataError, UsageError
from ajuste.core.stages import key_of_entry, md5_of
from ajuste.tracking.again.inputs import MANY, cached_bytes
from ajuste.tracking.again.outs import first_byte, recorded_files
from ajuste.tracking.project import git, lock
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs import facts
from ajuste.tracking.runs.store import client, exists, experiment_id

HARDWARE = "ajuste.hardware"  # tag of a run
KEY = "ajuste.stage_key"


@dataclass
class Claim:
    """What is claimed to be reproducible. `wrong`: what is found to be untrue before anything runs, in lines."""

    title: str
    commit: str
    lock: dict[str, dict]
    target: str | None = None  # the stage that is made again, with those that it needs; None: all
    params: str | None = None  # params.yaml as recorded; None: the commit's
    data: str | None = None  # digest of data/; None: the commit's
    hardware: str | None = None  # None: nobody recorded it
    version: Version | None = None
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def claim_of(reference: str) -> Claim:
    """A git revision, or models:/NAME@ALIAS, models:/NAME/3, NAME@ALIAS, NAME/3, NAME.

    Raises UsageError if it is neither.
    """
    if not reference.startswith("models:/"):
        if commit := git.commit_of(reference):
            return _of_revision(reference, commit)
    try:
        version = registry.resolve(reference)
    except UsageError as error:
        raise UsageError(f"`{reference}` is no git revision here, and {error}") from None
    return _of_version(version)


def _of_revision(reference: str, commit: str) -> Claim:
    """HEAD's claim is the dvc.lock of the working tree, the proof of the last run; that of others the committed one."""
    here = commit == git.head()
    recorded = lock.stages() if here else lock.parse(git.run("show", f"{commit}:dvc.lock"))
    if not recorded:
        raise DataError("dvc.lock is empty: there is no result to make again; `ajuste run` makes the first")
    kinds = {_hardware(key_of_entry(entry)) for entry in recorded.values()} if exists() else {None}
    return Claim(f"{reference} ({commit[:8]})", commit, recorded, hardware=kinds.pop() if len(kinds) == 1 else None)


def _of_version(version: Version) -> Claim:
    tags, title = version.tags, f"{version.name}/{version.version}"
    missing = [key for key in ("git_commit", "stage", "stage_key", "data", "dvc") if not tags.get(key)]
    if missing or not version.run_id:
        raise DataError(f"{title} does not say where it came from (no {', '.join(missing) or 'MLflow run'}): "
                        "it cannot be made again")
    files = {name: _recorded(version, name) for name in ("dvc.lock", "params.yaml", "environment.txt")}
    whole = lock.parse(files["dvc.lock"].decode())
    stage = tags["stage"]
    if stage not in whole:
        raise DataError(f"the dvc.lock that the run of {title} keeps has no stage `{stage}`")
    claim = Claim(title, tags["git_commit"], lock.upstream(whole, stage), stage, files["params.yaml"].decode(),
                  tags["data"], _hardware(tags["stage_key"]), version)
    digest = client().get_run(version.run_id).data.tags.get("dvc.lock.sha256")
    if hashlib.sha256(files["dvc.lock"]).hexdigest() != digest:
        claim.wrong.append(f"the dvc.lock that run {version.run_id} keeps is not the one that it recorded")
    if key_of_entry(whole[stage]) != tags["stage_key"]:
        claim.wrong.append(f"the recorded inputs of stage {stage} are not those of {title} (another stage key)")
    claim.wrong += artefact_differences(version)
    if tags.get("dirty") != "false":
        claim.notes.append("made with uncommitted changes: its params.yaml and data are recorded, its other inputs are "
                           f"those of commit {claim.commit[:8]} unless one is named below")
    claim.notes += _packages(files["environment.txt"].decode())
    return claim


def artefact_differences(version: Version) -> list[str]:
    """Files of a registered model that are not what was recorded, each in a line; [] if every byte is."""
    recorded, folder = version.tags["dvc"], version.path
    if md5_of(folder) == recorded:
        return []
    title = f"{version.name}/{version.version}"
    listing = cached_bytes(recorded)
    if listing is None:
        from ajuste.tracking.registry.logged import weights_of
        from ajuste.tracking.registry.register import sha256_of

        name, sha256 = version.tags.get("weights") or weights_of(folder).name, version.tags.get("sha256")
        same = (folder / name).is_file() and sha256_of(folder / name) == sha256
        return [f"registered file of {title}: " + ("one beside the weights" if same else name)
                + " is not what was recorded"]
    old = {entry["relpath"]: entry["md5"] for entry in json.loads(listing)}
    new = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            lines.append(f"registered file {name} of {title} is gone")
        elif name not in old:
            lines.append(f"registered file {name} of {title} is new")
        elif md5_of(new[name]) != old[name]:
            kept = recorded_files(old[name])
            at = f" from byte {first_byte(kept[''].read_bytes(), new[name].read_bytes())} on" if kept else ""
            lines.append(f"registered file {name} of {title} is not what was recorded{at}")
    return lines


def _recorded(version: Version, name: str) -> bytes:
    """A file that the version's run keeps."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client().download_artifacts(version.run_id, name, folder)).read_bytes()
        except (MlflowException, OSError):
            raise DataError(f"{version.name}/{version.version} cannot be made again: its run {version.run_id} has no "
                            f"{name} any more; was the run deleted, or MLflow's folder moved?") from None


def _hardware(key: str) -> str | None:
    """What a stage was run on, as its MLflow run says."""
    found = client().search_runs([experiment_id()], f"tags.`{KEY}` = '{key}'", max_results=1)
    return found[0].data.tags.get(HARDWARE) if found else None


def _packages(recorded: str) -> list[str]:
    """Packages of the record that have another version here, in one line."""
    def read(text: str) -> dict[str, str]:
        pairs = (line.partition("==") for line in text.splitlines() if not line.startswith("#"))
        return {name: version for name, _, version in pairs}

    old, new = read(recorded), read(facts.environment())
    changed = [f"{name} {old[name]} -> {new.get(name, 'not here')}" for name in old if old[name] != new.get(name)]
    more = f" and {len(changed) - MANY} more" if len(changed) > MANY else ""
    return [f"other packages than then: {', '.join(changed[:MANY])}{more}"] if changed else []
