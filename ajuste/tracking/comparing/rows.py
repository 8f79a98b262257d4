"""What `compare` reads from the evaluations' own files: each version's figure of each test row, and its answers.

A family says what its evaluations left (`row_values` and `answers` in ajuste/tracking/registry/families/).
"""

from ajuste.tracking.registry.families import all as families
from ajuste.tracking.registry.families.family import Said, Values
from ajuste.tracking.registry.registry import ALIASES
from ajuste.tracking.registry.version import Version

RESAMPLES = 1000


def paired(chosen: list[Version]) -> list[dict]:
    """Each version against the reference (champion, else challenger, else the first), on the rows that both share.

    One entry a metric that both have.
    """
    import numpy as np

    from ajuste.learning.statistics import metrics

    if len(chosen) < 2:
        return []
    reference = next((v for alias in ALIASES[:2] for v in chosen if alias in v.aliases), chosen[0])
    rows = values(chosen)
    found = []
    for version in chosen:
        for metric in families.metrics_of(version.name):
            a, b = (rows.get((of.version, metric.name), {}) for of in (version, reference))
            shared = sorted((row for row in a.keys() & b.keys() if a[row][1] == b[row][1]), key=str)
            if version is reference or not shared:
                continue
            d = np.array([a[row][0] - b[row][0] for row in shared])
            weights = np.array([a[row][1] for row in shared])
            counts = metrics.resamples(len(d), RESAMPLES, seed=0)
            low, high = metrics.percentile_interval((counts @ d) / (counts @ weights))
            better, worse = (high < 0, low > 0) if metric.lower else (low > 0, high < 0)
            found.append({
                "version": version.version, "against": reference.version, "metric": metric.name,
                "difference": float(d.sum() / weights.sum()), "low": low, "high": high, "rows": len(d),
                "unit": metric.unit,
                "verdict": "better" if better else "worse" if worse else "no clear difference",
            })
    return found


def values(chosen: list[Version]) -> dict[tuple[str, str], Values]:
    """{(version, metric): its value of each test row}, as the evaluations left them: of the version itself and, where
    a version that was made from it is chosen too, what that one's evaluation judged of both."""
    numbers = {f"{version.name}/{version.version}": version.version for version in chosen}
    found: dict[tuple[str, str], Values] = {}
    for version in chosen:
        family = families.of_method(version.tags.get("method"))
        for (reference, metric), rows in (family.row_values(version) if family else {}).items():
            if reference in numbers:
                found[numbers[reference], metric] = found.get((numbers[reference], metric), {}) | rows
    return found


def answers(chosen: list[Version]) -> list[dict]:
    """The prompts that most have in common: {"id", "prompt", "base", "versions": {"1": text, ...}}; [] of classifiers.

    `base` is None where the versions have different bases, whose answers differ, or where it was not asked.
    """
    numbers = {f"{version.name}/{version.version}": version.version for version in chosen}
    said: dict[tuple[str, str], dict[str, str]] = {}
    bases: dict[tuple[str, str], set[str | None]] = {}
    for one in _said(chosen):
        key = one.id, one.prompt
        said.setdefault(key, {}).update({numbers[who]: text for who, text in one.by.items() if who in numbers})
        bases.setdefault(key, set()).update([] if one.base is None else [one.base])
    most = max(map(len, said.values()), default=0)
    first = next((list(texts) for texts in said.values() if len(texts) == most), [])
    return [
        {"id": key[0], "prompt": key[1], "base": next(iter(bases[key])) if len(bases[key]) == 1 else None,
         "versions": {v.version: texts[v.version] for v in chosen if v.version in texts}}
        for key, texts in said.items() if set(texts) == set(first)
    ]  # fmt: skip


def _said(chosen: list[Version]) -> list[Said]:
    """Every answer, of versions that start from a pretrained base first: their prompts are those that most have."""
    known = [(family, version) for version in chosen if (family := families.of_method(version.tags.get("method")))]
    known.sort(key=lambda pair: pair[0].from_another)
    return [one for family, version in known for one in family.answers(version)]
