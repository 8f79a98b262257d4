"""The registry: which versions exist, which one a name means, where its files are.

    reference            what it means
    NAME                 the champion; where there is none, the challenger
    NAME@ALIAS           the version that the alias names
    NAME/3               version 3
    models:/...          the same, as MLflow writes it

`<set>-classifier` and `assistant` hold what is served (whole or merged weights; an adapter that cannot be merged
stands there itself); the same names with `-adapter` hold the adapters in PEFT's own layout. Aliases stand on the served
name only. `register_all` (ajuste/tracking/registry/register.py) makes the versions.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ajuste.core.errors import UsageError
from ajuste.core.home import home
from ajuste.tracking.registry.families.all import headline
from ajuste.tracking.registry.moves import (
    aliases_of,
    existing,
    model_of,
    models,
    version_by_alias,
    version_of,
    versions_of,
)
from ajuste.tracking.registry.register import register_all as _register_all
from ajuste.tracking.registry.tags import unfold
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs.store import client, exists, local_path, tracking_uri, without_password

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ALIASES = ("champion", "challenger", "previous")
REFERENCE = re.compile(r"(?:models:/+)?(?P<name>[^/@:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))?")


def register_all(parent: str | None = None, stages: Collection[str] | None = None) -> list[Version]:
    """Find or create a version for every model that dvc.lock names, or those of `stages` alone; returns the new ones.

    Raises DataError if a merged model has no passing proof; the other models are registered all the same.
    """
    made = [client().get_model_version(name, number) for name, number in _register_all(parent, stages)]
    return [_version(item, item.aliases) for item in made]


def names() -> list[str]:
    """All registered names, sorted; none where there is no store yet."""
    return sorted(model.name for model in models()) if exists() else []


def versions(name: str) -> list[Version]:
    """All versions of a name, oldest first. Raises UsageError, with the names that exist, for an unknown one."""
    model = model_of(name) if exists() else None
    found = versions_of(name) if model else []
    if not found:
        raise UsageError(f"no registered model `{name}`: {_known()}")
    of: dict[str, list[str]] = {}
    for alias, number in aliases_of(model).items():
        of.setdefault(number, []).append(alias)
    return [_version(item, of.get(str(item.version), ())) for item in found]


def everything() -> dict[str, list[Version]]:
    """All versions, oldest first, of every name that has some: two questions to the store, however many there are."""
    if not exists():
        return {}
    of: dict[tuple[str, str], list[str]] = {}
    for model in models():
        for alias, number in aliases_of(model).items():
            of.setdefault((model.name, number), []).append(alias)
    found: dict[str, list[Version]] = {}
    for item in versions_of(None):
        found.setdefault(item.name, []).append(_version(item, of.get((item.name, str(item.version)), ())))
    return dict(sorted(found.items()))


def resolve(reference: str) -> Version:
    """The version that a reference means, with its local folder; a remote store's files are downloaded once.

    Raises UsageError that lists what exists for an unknown name, alias or version, and for files that are gone.
    """
    version = find(reference)
    return replace(version, path=_local_folder(version))


def find(reference: str, default: tuple[str, ...] = ALIASES[:2]) -> Version:
    """As `resolve`, without the files. `default`: which alias a name alone means, the first that is set."""
    match = REFERENCE.fullmatch(reference)
    if not match:
        raise UsageError(f"`{reference}` names no model: write NAME, NAME@ALIAS or NAME/VERSION; {_known()}")
    name, alias, number = match["name"], match["alias"], match["version"]
    if not exists():
        raise UsageError(f"no registered model `{name}`: {_known()}")
    # one question a reference, whatever stands beside it: a server asks every two seconds
    if number is not None:
        item = version_of(name, number)
    else:
        asked = [alias] if alias else default
        alias, item = next(((known, item) for known in asked if (item := version_by_alias(name, known))), (alias, None))
    if item is None:
        raise UsageError(_unknown(name, alias, number, default))
    return replace(_version(item, item.aliases), alias=alias)


def summary() -> dict[str, str]:
    """One line a served name: which version each alias names, with its strategy and its test figure."""
    lines = {}
    for name in names():
        if name.endswith("-adapter"):
            continue
        of = {known: found for known in aliases_of(existing(name)) if (found := by_alias(name, known))}
        parts = []
        for known in sorted(of, key=lambda alias: (ALIASES.index(alias) if alias in ALIASES else 9, alias)):
            tags = of[known].tags
            parts.append(f"{known} is version {of[known].version} ({tags.get('strategy', '?')}{headline(tags)})")
        lines[name] = "; ".join(parts) or "no alias yet"
    return lines


def by_alias(name: str, alias: str) -> Version | None:
    """The version that an alias of a name stands on; None where there is no such name or alias."""
    item = version_by_alias(name, alias) if exists() else None
    return _version(item, item.aliases) if item else None


def _version(item: ModelVersion, aliases: Collection[str]) -> Version:
    mine = tuple(sorted(aliases, key=lambda a: (ALIASES.index(a) if a in ALIASES else 9, a)))
    return Version(
        item.name, str(item.version), mine[0] if mine else None, None, unfold(item.tags), item.run_id or None, mine,
        item.creation_timestamp,
    )


def _unknown(name: str, alias: str | None, number: str | None, default: tuple[str, ...]) -> str:
    """What there is, for a reference that names nothing. Raises UsageError for an unknown name."""
    found = {version.version: version for version in versions(name)}
    if number is not None:
        return f"`{name}` has no version {number}: it has {', '.join(found)}"
    have = ", ".join(sorted({known for version in found.values() for known in version.aliases})) or "none yet"
    asked = f"alias `{alias}`" if alias else " and no ".join(default)
    return f"`{name}` has no {asked}: its aliases are {have}, its versions {', '.join(found)}"


def _known() -> str:
    found = names()
    if not found:
        return "nothing is registered yet (`ajuste run` registers)"
    return f"registered are {', '.join(found)}"


def _local_folder(version: Version) -> Path:
    """The version's files: where the store has them, or a copy under the home if the store is remote."""
    uri = client().get_model_version_download_uri(version.name, version.version)
    local = local_path(uri) or _download(uri, version)
    if not local.is_dir():
        raise UsageError(f"the files of {version.name}/{version.version} are gone ({local}): was the project's folder "
                         "moved? MLflow stores absolute paths; `ajuste doctor` checks it")
    description = local / "MLmodel"
    if not description.exists():
        return local  # an adapter, in PEFT's own layout
    logged = yaml.safe_load(description.read_text(encoding="utf-8"))
    return local / logged["flavors"]["python_function"]["artifacts"]["model"]["path"]


def _download(uri: str, version: Version) -> Path:
    """Download once, into <home>/.assets/models; a folder is there whole or not at all."""
    import mlflow.artifacts

    digest = version.tags.get("sha256", "")[:16]
    target = home() / ".assets" / "models" / version.name / f"{version.version}-{digest}"
    if not target.is_dir():
        part = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            got = Path(mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(part), tracking_uri=tracking_uri()))
            if not target.is_dir():
                os.rename(got, target)
        except OSError as error:
            raise UsageError(f"cannot download {version.name}/{version.version}: "
                             f"{without_password(' '.join(str(error).split()))}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target
