"""Which version of a served name is `challenger`: the best on validation.

Only versions with the same validation rows can be compared: those of the newest one. Of classifiers the highest
macro-F1 wins, of reward models the highest pair accuracy, of SFT assistants the lowest loss; equals go to the one with
fewer trainable parameters, then to the older one. ajuste/tracking/registry/families.py says why a PPO has to beat, by
the gold scorer, the very SFT version that it was made from. Tag `unranked` says of a version that this is still to be
done.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ajuste.tracking.registry import families
from ajuste.tracking.registry.families import Family
from ajuste.tracking.registry.promotion import settle
from ajuste.tracking.registry.tags import unfold
from ajuste.tracking.runs.store import client, locked

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def rank(name: str) -> None:
    """Give `challenger` to the best on validation, if a version is unranked or the alias is missing."""
    settle(name)  # the aliases are read below
    opened = client()
    with locked():
        found = sorted(opened.search_model_versions(f"name='{name}'"), key=lambda version: int(version.version))
        current = {alias: str(number) for alias, number in opened.get_registered_model(name).aliases.items()}
        unranked = [version for version in found if "unranked" in version.tags]
        if not found or ("challenger" in current and not unranked):
            return
        facts = {version.version: unfold(version.tags) for version in found}
        best, why = _best(found, facts)
        if best is not None and current.get("challenger") != str(best.version):
            before = f"before it version {current['challenger']}" if "challenger" in current else "the first"
            opened.set_model_version_tag(
                name, best.version, "alias.challenger", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {why}, {before}"
            )
            opened.set_registered_model_alias(name, "challenger", best.version)
        for version in unranked:
            opened.delete_model_version_tag(name, version.version, "unranked")


def _best(found: list[ModelVersion], facts: dict[str, dict[str, str]]) -> tuple[ModelVersion | None, str]:
    """(version, why). None where there are PPO versions alone: there is nothing that they could be held against."""
    by_method: dict[str, list[ModelVersion]] = {}
    for version in found:
        by_method.setdefault(facts[version.version]["method"], []).append(version)
    tuned = by_method.pop(families.PPO.method, [])
    if not by_method:
        return None, ""
    (method, plain), = by_method.items()
    family = next(family for family in families.FAMILIES if family.method == method)
    best, of = _first(family, plain, facts)
    figure = float(facts[best.version][f"validation.{family.best}"])
    why = f"best validation {family.best_name} {figure:.4f} of {of} versions"
    made_from_it = [version for version in tuned if _beats(facts[version.version], f"{best.name}/{best.version}")]
    if made_from_it:
        family = families.PPO
        before, (best, _) = best, _first(family, made_from_it, facts)
        gain, low = (float(facts[best.version][f"validation.{key}"]) for key in (family.best, f"{family.best}_low"))
        why = (f"its gold score on validation is {gain:.4f} (at least {low:.4f}) above version {before.version}, which "
               f"it was made from and which has the {why}")
    return best, why


def _beats(tags: dict[str, str], base: str) -> bool:
    """Whether a PPO version was made from `base` and is better by the gold score: the interval excludes 0."""
    return tags.get("base_version") == base and float(tags.get("validation.gold_gain_low", "nan")) > 0


def _first(
    family: Family, versions: list[ModelVersion], facts: dict[str, dict[str, str]]
) -> tuple[ModelVersion, int]:
    """The best of the versions whose validation rows are those of the newest, and how many these are."""
    newest = next((v for v in reversed(versions) if "unranked" in v.tags), versions[-1])
    rows = facts[newest.version].get("validation_rows")
    group = [version for version in versions if facts[version.version].get("validation_rows") == rows]

    def order(version: ModelVersion) -> tuple:
        tags = facts[version.version]
        figure = float(tags[f"validation.{family.best}"])
        return figure if family.lower else -figure, int(tags["parameters.trainable"]), int(version.version)

    return min(group, key=order), len(group)
