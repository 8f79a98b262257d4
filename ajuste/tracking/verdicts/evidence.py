"""What the gate asks of a challenger, gathered: results row by row, forgetting, proof, checks, latency and memory.

Results are those that a version's own evaluation left in MLflow, if that evaluation was of today's test rows (tag
`test_rows`). A version that was evaluated on other rows, as an old champion, is scored on today's in a process of its
own (ajuste/judging/score_rows.py), once: <home>/.state/gate/<sha256 of the weights>-<digest of the rows>.parquet
remembers it. What a method compares in its own way, as samples that are not made again, its family says
(ajuste/tracking/registry/families/). Private to ajuste/tracking/verdicts/gate.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Hashable
from pathlib import Path

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.judging.clusters import clusters
from ajuste.judging.verdicts.alignment import Beside
from ajuste.judging.verdicts.gate import Evidence, GateConfig, Paired
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families import all as families
from ajuste.tracking.registry.families import ledgers
from ajuste.tracking.registry.families.family import Family, Values
from ajuste.tracking.registry.rank import ledger_of
from ajuste.tracking.registry.scores import rows_digest
from ajuste.tracking.registry.version import Version
from ajuste.tracking.runs.facts import read_json

BASE = Path("artifacts/base/decoder")
TIMEOUT = 3600  # seconds of a process that scores


def evidence(config: GateConfig, challenger: Version, champion: Version | None) -> Evidence:
    """All that the gate needs. What cannot be had is named in it; only an unknown version raises."""
    family = family_of(challenger)
    today = rows_digest(family, "test")
    own, problem = _results(challenger, family, today)
    base = Paired("its base", own, {}, problem) if problem else _base(challenger, family, own, today)
    against, others = None, {}
    if champion is not None:
        name = f"champion {champion.version}"
        against = Paired(name, own, {}, problem) if problem else _champion(challenger, champion, family, own, today)
        others = family_of(champion).measured(champion) if family.keeping else {}
    latency = memory = None
    said = ""
    if config.latency_ms is not None or config.memory_mb is not None:
        try:
            measured = _measured(challenger, family)
            latency, memory = measured["latency_ms"], measured["memory_mb"]
        except (UsageError, DataError) as error:
            said = f"could not be measured: {error}"
    kept = tuple(family.kept(challenger, champion, others)) if family.keeping else None
    alike, unknown = _clusters(getattr(config, family.metric).cluster, family, own)
    return Evidence(
        metric=family.metric, base=base, champion=against, forgetting=_forgetting(challenger, family),
        proof=_proof(challenger), checks=_checks(family), latency_ms=latency, memory_mb=memory, measure_problem=said,
        forgetting_by=family.forgetting, kept=kept, kept_by=family.keeping,
        alignment=_alignment(config, challenger, champion, family) if family.talks else None,
        alignment_by=family.alignment, clusters=alike, clusters_problem=unknown,
    )  # fmt: skip


def row_ids(own: Values) -> list[str]:
    """The ids of the rows that results are of; samples that a judge scored are known by (id, judge)."""
    return [str(key[0] if isinstance(key, tuple) else key) for key in own]


def _clusters(column: str | None, family: Family, own: Values) -> tuple[dict[object, Hashable] | None, str]:
    """(test row -> its source, why that is not known); (None, "") where each row is its own."""
    import pyarrow.parquet as pq

    if column is None:
        return None, ""
    path = family.encoded / family.rows.format(split="test")
    try:
        table = pq.read_table(path, columns=["row_id", column]).to_pydict()
    except (OSError, ValueError) as error:
        return None, f"{path} has no column `{column}` (`gate.{family.metric}.cluster`): {str(error).splitlines()[0]}"
    found = clusters(table["row_id"], table[column])
    return {key: found.get(one, one) for key, one in zip(own, row_ids(own), strict=True)}, ""


def family_of(version: Version) -> Family:
    """The family of a version, by its tag `method`. Raises UsageError for one of none."""
    return families.family_of(version.name, version.version, version.tags.get("method"))


def _results(version: Version, family: Family, today: str) -> tuple[Values, str]:
    """(results of today's test rows, why there are none)."""
    if not family.rescored:
        return family.recorded(version), ""
    if not today:
        return {}, f"there are no test rows in {family.encoded}: `ajuste run` makes them"
    if version.tags.get("test_rows") == today and (recorded := family.recorded(version)):
        return recorded, ""
    try:
        found = registry.resolve(f"{version.name}/{version.version}")
        return scored(family, found.path, version.tags["sha256"], today), ""
    except (UsageError, DataError) as error:
        return {}, f"{version.name}/{version.version} was not evaluated on today's test rows, and {error}"


def _base(challenger: Version, family: Family, own: Values, today: str) -> Paired:
    """The challenger beside what it was made from; the pretrained base is scored if its family knows no better."""
    if (found := family.before(challenger, own, today)) is not None:
        return found
    sha256 = challenger.tags["base_sha256"]
    if read_json(BASE / "base.json").get("sha256") != sha256:
        return Paired("its base", own, {}, f"its base (sha256 {sha256[:12]}) is not the one in {BASE}")
    try:
        return Paired("its base", own, scored(family, BASE, sha256, today))
    except (UsageError, DataError) as error:
        return Paired("its base", own, {}, str(error))


def _champion(challenger: Version, champion: Version, family: Family, own: Values, today: str) -> Paired:
    if (found := family.beside(challenger, champion, own)) is not None:
        return found
    name, other = f"champion {champion.version}", family_of(champion)
    for key, what in (("tokenizer_sha256", "tokenizer"), ("template_sha256", "chat template")):
        if champion.tags.get(key) != challenger.tags.get(key):  # rows are encoded for one of the two
            return Paired(name, own, {}, f"it has another {what}, for which today's rows are not encoded")
    if other.method != family.method:
        return Paired(name, own, {}, other.apart())
    others, problem = _results(champion, family, today)
    return Paired(name, own, others, problem)


def _alignment(config: GateConfig, challenger: Version, champion: Version | None, family: Family
               ) -> tuple[Beside, ...]:  # fmt: skip
    """The challenger's alignment ledger beside that of what it was made from, and of the champion if that is another.
    """
    own, made_from = ledgers.of_run(family.alignment, challenger.tags), challenger.tags.get("base_version")
    if made_from:
        found = [Beside(f"{made_from} that it was made from", own, ledger_of(made_from))]
    else:
        before = ledgers.of_base(challenger.tags)
        found = [Beside("its base", own, before, told=config.alignment.base == "tell")]
    if champion is not None and f"{champion.name}/{champion.version}" != made_from:
        others = ledgers.of_run(family_of(champion).alignment, champion.tags)
        found.append(Beside(f"champion {champion.version}", own, others, "champion "))
    return tuple(found)


# --- what a version says of itself ------------------------------------------------------------------------------------


def _forgetting(version: Version, family: Family) -> dict[str, float | None] | None:
    """Set -> upper end of F = score before - score after; None of a family that is not measured on any."""
    if not family.forgetting:
        return None
    sets = {key.removeprefix("forgetting.").removesuffix(".high").removesuffix(".low")
            for key in version.tags if key.startswith("forgetting.")}
    return {name: _number(version.tags.get(f"forgetting.{name}.high")) for name in sets}


def _proof(version: Version) -> dict[str, float | None] | None:
    """The merge's; None of a version that was served as it was trained."""
    tags = version.tags
    if tags.get("proof.merged") == "false" or not (
            "adapter_version" in tags or any(key.startswith("proof.") for key in tags)):
        return None
    return {"difference": _number(tags.get("proof.max_logit_difference")),
            "tolerance": _number(tags.get("proof.tolerance"))}


def _checks(family: Family) -> dict[str, bool] | None:
    """Of today's validation, the checks that are errors; None if there is no validation."""
    path = Path("artifacts/validated") / family.encoded.name / "validation.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["checks"]
    except (OSError, ValueError, KeyError):
        return None
    return {check["name"]: bool(check["passed"]) for check in found if check["severity"] == "error"}


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


# --- a process of its own ---------------------------------------------------------------------------------------------


def scored(family: Family, folder: Path, sha256: str, today: str) -> Values:
    """The results of a model folder on today's test rows, computed once. Raises DataError if it cannot be done."""
    import pyarrow.parquet as pq

    path = home() / ".state" / "gate" / f"{sha256[:16]}-{today}.parquet"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            _process(family, folder, part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return {row["row_id"]: (row["value"], row["weight"]) for row in pq.read_table(path).to_pylist()}


def _measured(version: Version, family: Family) -> dict[str, float]:
    """{"latency_ms", "memory_mb"}, measured now: another machine or another hour has other times."""
    folder = registry.resolve(f"{version.name}/{version.version}").path
    path = home() / ".state" / "gate" / f".{os.getpid()}-measured.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _process(family, folder, path, "--measure")
        return json.loads(path.read_text(encoding="utf-8"))
    finally:
        path.unlink(missing_ok=True)


def _process(family: Family, folder: Path, out: Path, *more: str) -> None:
    base = ["--base", str(BASE)] if family.based else []
    command = [sys.executable, "-m", "ajuste.judging.score_rows", family.kind, str(folder), str(out), *base, *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise DataError(f"scoring {folder} took longer than {TIMEOUT} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1].removeprefix("error: ") if lines else f"the process ended with {done.returncode}"
        raise DataError(f"it cannot be scored on them: {said}")
