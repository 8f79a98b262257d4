"""Which version of a served name is `challenger`: the best on validation.

Only versions with the same validation rows can be compared: those of the newest one. The method that starts from a
pretrained base ranks by its family's figure; equals go to the version with fewer trainable parameters, then to the
older one. A method that is made from a registered version takes over from that very version, by its family's own rule
(ajuste/tracking/registry/families/), and so on along the chain. Of several that are judged alike, ajuste/judging/
choosing.py says which one goes on: the gain's lower bound, KL, cost, and none that is a worse assistant than before by
more than the gate's margins, its alignment included. Methods that rank by the same figure are ranked together; others
have no common scale, so of two such that take over the one with the newest version goes on. Tag `unranked` says of a
version that this is still to be done.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ajuste.judging.alignment.ledger import Ledger
from ajuste.judging.policy import policy
from ajuste.judging.verdicts.alignment import Beside, unaligned
from ajuste.judging.verdicts.choosing import Candidate, choose, lost
from ajuste.judging.verdicts.gate import GateConfig
from ajuste.tracking.registry.families import ledgers
from ajuste.tracking.registry.families.all import of_method
from ajuste.tracking.registry.families.family import RANKED, Family
from ajuste.tracking.registry.moves import aliases_of, model_of, versions_of
from ajuste.tracking.registry.promotion import settle
from ajuste.tracking.registry.tags import unfold
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs.store import client, locked

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    Evidence = Callable[[ModelVersion, dict[str, str]], tuple[float | None, str]]


def rank(name: str) -> None:
    """Give `challenger` to the best on validation, if a version is unranked or the alias is missing."""
    settle(name)  # the aliases are read below
    opened = client()
    with locked():
        found, model = versions_of(name), model_of(name)
        current = aliases_of(model) if model else {}
        unranked = [version for version in found if "unranked" in version.tags]
        if not found or ("challenger" in current and not unranked):
            return
        facts = {version.version: unfold(version.tags) for version in found}
        best, why = _best(found, facts, _evidence)
        if best is not None and current.get("challenger") != str(best.version):
            before = f"before it version {current['challenger']}" if "challenger" in current else "the first"
            opened.set_model_version_tag(
                name, best.version, "alias.challenger", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {why}, {before}"
            )
            opened.set_registered_model_alias(name, "challenger", best.version)
        for version in unranked:
            opened.delete_model_version_tag(name, version.version, "unranked")


def _best(found: list[ModelVersion], facts: dict[str, dict[str, str]], evidence: Evidence | None = None
          ) -> tuple[ModelVersion | None, str]:  # fmt: skip
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
        alike = [version for version in made if known[version.version].best == family.best]
        chosen, because = _chosen(alike, facts, evidence)
        because = f"; {because}" if because else ""
        if chosen is None:
            return before, why + because
        best, family = chosen, known[chosen.version]
        why = (f"{family.takes_over(facts[best.version])} version {before.version}, which it was made from and which "
               f"has the {why}{because}")
    return best, why


def _takes_over(family: Family | None, tags: dict[str, str], best: ModelVersion) -> bool:
    """Whether a version was made from `best`, which is then an older one, and is better by its family's rule."""
    made_from = f"{best.name}/{best.version}"
    return bool(family and family.from_another and tags.get("base_version") == made_from and family.takes_over(tags))


def _chosen(
    versions: list[ModelVersion], facts: dict[str, dict[str, str]], evidence: Evidence | None
) -> tuple[ModelVersion | None, str]:
    """(the one of those made from one version that goes on, why), of those with the newest one's validation rows."""
    group = _comparable(versions, facts)
    newest = facts[_newest(group).version]
    if shared := f"ranked.{of_method(newest['method']).best}" in newest:  # an older way of judging is no evidence here
        group = [v for v in group if all(facts[v.version].get(key) == newest.get(key) for key in RANKED)]
    tags = [facts[version.version] for version in group]
    families = [of_method(of["method"]) for of in tags]
    judged = [family.judged(of, shared) for family, of in zip(families, tags, strict=True)]
    if None in judged:
        return _first(families[-1], versions, facts)[0], ""
    best, why = choose([
        Candidate(str(version.version), one, int(of["parameters.trainable"]),
                  *(evidence(version, of) if evidence else ()))
        for version, one, of in zip(group, judged, tags, strict=True)
    ])  # fmt: skip
    return next((version for version in group if best and str(version.version) == best.version), None), why


def _first(
    family: Family, versions: list[ModelVersion], facts: dict[str, dict[str, str]]
) -> tuple[ModelVersion, int]:
    """The best of the versions whose validation rows are those of the newest, and how many these are."""
    group = _comparable(versions, facts)

    def order(version: ModelVersion) -> tuple:
        tags = facts[version.version]
        figure = float(tags[f"validation.{family.best}"])
        return figure if family.lower else -figure, int(tags["parameters.trainable"]), int(version.version)

    return min(group, key=order), len(group)


def _newest(versions: list[ModelVersion]) -> ModelVersion:
    """The last one that is unranked, or the last one."""
    return next((v for v in reversed(versions) if "unranked" in v.tags), versions[-1])


def _comparable(versions: list[ModelVersion], facts: dict[str, dict[str, str]]) -> list[ModelVersion]:
    """Those whose validation rows are the newest one's."""
    rows = facts[_newest(versions).version].get("validation_rows")
    return [version for version in versions if facts[version.version].get("validation_rows") == rows]


# --- evidence ---------------------------------------------------------------------------------------------------------


def _evidence(version: ModelVersion, tags: dict[str, str]) -> tuple[float | None, str]:
    """(seconds of its training and merge, what it lost as an assistant) as the store has them."""
    family = of_method(tags["method"])
    own = Version(version.name, str(version.version), None, None, tags, version.run_id)
    kept = family.kept(own, None, {}) if family.keeping else []
    gate = policy("gate", GateConfig)
    margins = {"loss": gate.loss_margin, "rules": gate.rules_margin, "rouge": gate.rouge_margin}
    made_from = tags.get("base_version", "")
    beside = Beside(f"{made_from} that it was made from", ledgers.of_run(family.alignment, tags), ledger_of(made_from))
    said = [lost(kept, margins), unaligned(gate.alignment, beside)]
    return _seconds(version, tags), "; ".join(one for one in said if one)


def ledger_of(reference: str) -> Ledger | None:
    """The alignment ledger of a version, by NAME/NUMBER; None where it has none or is gone."""
    from mlflow.exceptions import MlflowException

    name, _, number = reference.rpartition("/")
    try:
        tags = unfold(client().get_model_version(name, number).tags)
    except MlflowException:
        return None
    family = of_method(tags.get("method", ""))
    return ledgers.of_run(family.alignment, tags) if family else None


def _seconds(version: ModelVersion, tags: dict[str, str]) -> float | None:
    """Of the runs that trained and merged the version; None where one of them was not measured or is gone."""
    from mlflow.exceptions import MlflowException

    opened = client()
    try:
        runs = [version.run_id]
        if number := tags.get("adapter_version"):
            runs.append(opened.get_model_version(f"{version.name}-adapter", number).run_id)
        return sum(opened.get_run(run).data.metrics["cost/seconds"] for run in runs)
    except (MlflowException, KeyError):
        return None
