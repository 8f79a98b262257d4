"""Which version of a served name is `challenger`: the best on validation.

Only versions with the same validation rows can be compared: those of the newest one. The method that starts from a
pretrained base ranks by its family's figure; equals go to the version with fewer trainable parameters, then to the
older one. A method that is made from a registered version takes over from that very version, by its family's own rule
(ajuste/tracking/registry/families/), and so on along the chain. Methods that rank by the same figure are ranked
together; others have no common scale, so of two such that take over the one with the newest version goes on. Tag
`unranked` says of a version that this is still to be done.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ajuste.tracking.registry.families.all import of_method
from ajuste.tracking.registry.families.family import Family
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
    """(version, why). None where all are made from others: there is nothing that they could be held against."""
    known = {version.version: of_method(facts[version.version]["method"]) for version in found}
    plain = [version for version in found if (family := known[version.version]) and not family.from_another]
    if not plain:
        return None, ""
    family = known[plain[0].version]
    # two methods that start from a pretrained base are ranked together where they are measured by the same figure
    best, of = _first(family, [version for version in plain if known[version.version].best == family.best], facts)
    figure = float(facts[best.version][f"validation.{family.best}"])
    why = f"best validation {family.best_name} {figure:.4f} of {of} versions"
    while made := [version for version in found if _takes_over(known[version.version], facts[version.version], best)]:
        family, before = known[made[-1].version], best
        best, _ = _first(family, [version for version in made if known[version.version].best == family.best], facts)
        family = known[best.version]
        why = (f"{family.takes_over(facts[best.version])} version {before.version}, which it was made from and which "
               f"has the {why}")
    return best, why


def _takes_over(family: Family | None, tags: dict[str, str], best: ModelVersion) -> bool:
    """Whether a version was made from `best`, which is then an older one, and is better by its family's rule."""
    made_from = f"{best.name}/{best.version}"
    return bool(family and family.from_another and tags.get("base_version") == made_from and family.takes_over(tags))


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
