"""What the gate asks of a challenger, gathered: results row by row, forgetting, proof, checks, latency and memory.

Results are those that a version's own evaluation left in MLflow, if that evaluation was of today's test rows (tag
`test_rows`). A version that was evaluated on other rows, as an old champion, is scored on today's in a process of its
own (ajuste/judging/score_rows.py), once: <home>/.state/gate/<sha256 of the weights>-<digest of the rows>.parquet
remembers it. PPO's answers are samples that the gold scorer judged; they are not made again, so a version without them
on the same prompts, judged by the same scorer, cannot be compared. Private to ajuste/tracking/verdicts/gate.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.judging.gate import Evidence, GateConfig, Paired
from ajuste.tracking.comparing import rows as rows
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families import BEFORE, CLASSIFIER, FAMILIES, PPO, REWARD, SFT, Family
from ajuste.tracking.registry.registry import Version
from ajuste.tracking.registry.scores import rows_digest
from ajuste.tracking.runs.facts import read_json

METRIC = {CLASSIFIER: "accuracy", REWARD: "pair_accuracy", SFT: "loss", PPO: "gold"}
BASE = Path("artifacts/base/decoder")
RECORDED = {CLASSIFIER: rows.right, REWARD: rows.ordered, SFT: rows.losses}
TIMEOUT = 3600  # seconds of a process that scores


def family_of(version: Version) -> Family:
    """The family of a version, by its tag `method`. Raises UsageError for one of none."""
    found = next((family for family in FAMILIES if family.method == version.tags.get("method")), None)
    if found is None:
        raise UsageError(f"{version.name}/{version.version} says no method that the gate knows: it judges versions "
                         "that `ajuste run` registered")
    return found


def evidence(config: GateConfig, challenger: Version, champion: Version | None) -> Evidence:
    """All that ajuste/judging/gate.py needs. What cannot be had is named in it; only an unknown version raises."""
    family = family_of(challenger)
    today = rows_digest(family, "test")
    if family is PPO:
        base, against = _gold(challenger, champion)
    else:
        own, problem = _results(challenger, family, today)
        base = Paired("its base", own, {}, problem) if problem else _base(challenger, family, own, today)
        against = None
        if champion is not None:
            name = f"champion {champion.version}"
            against = Paired(name, own, {}, problem) if problem else _champion(challenger, champion, family, own, today)
    latency = memory = None
    said = ""
    if config.latency_ms is not None or config.memory_mb is not None:
        try:
            measured = _measured(challenger, family)
            latency, memory = measured["latency_ms"], measured["memory_mb"]
        except (UsageError, DataError) as error:
            said = f"could not be measured: {error}"
    return Evidence(METRIC[family], base, against, _forgetting(challenger, family), _proof(challenger),
                    _checks(family), latency, memory, said)


def _results(version: Version, family: Family, today: str) -> tuple[rows.Values, str]:
    """(results of today's test rows, why there are none)."""
    if not today:
        return {}, f"there are no test rows in {family.encoded}: `ajuste run` makes them"
    if version.tags.get("test_rows") == today and (recorded := RECORDED[family](version)):
        return recorded, ""
    try:
        found = registry.resolve(f"{version.name}/{version.version}")
        return scored(family, found.path, version.tags["sha256"], today), ""
    except (UsageError, DataError) as error:
        return {}, f"{version.name}/{version.version} was not evaluated on today's test rows, and {error}"


def _base(challenger: Version, family: Family, own: rows.Values, today: str) -> Paired:
    """The challenger beside what it was made from."""
    if family is REWARD:
        return Paired("a coin", own, {row: (0.5, 1.0) for row in own})
    if family is CLASSIFIER:
        return _majority(family, own)
    if challenger.tags.get("test_rows") == today and (before := base_losses(challenger)):
        return Paired("its base", own, before)
    sha256 = challenger.tags["base_sha256"]
    if read_json(BASE / "base.json").get("sha256") != sha256:
        return Paired("its base", own, {}, f"its base (sha256 {sha256[:12]}) is not the one in {BASE}")
    try:
        return Paired("its base", own, scored(family, BASE, sha256, today))
    except (UsageError, DataError) as error:
        return Paired("its base", own, {}, str(error))


def _majority(family: Family, own: rows.Values) -> Paired:
    """Always the most frequent label of the training rows: what a classifier knows that read no text."""
    import pyarrow.parquet as pq

    try:
        train = pq.read_table(family.encoded / "train.parquet", columns=["label"])["label"].to_pylist()
        test = pq.read_table(family.encoded / "test.parquet", columns=["row_id", "label"]).to_pylist()
    except (OSError, ValueError, KeyError):
        return Paired("the most frequent label", own, {},
                      f"{family.encoded} has no label a row: is `classify.task` sequence?")
    most, _ = min(Counter(train).items(), key=lambda item: (-item[1], item[0]))
    return Paired("the most frequent label", own, {row["row_id"]: (float(row["label"] == most), 1.0) for row in test})


def _champion(challenger: Version, champion: Version, family: Family, own: rows.Values, today: str) -> Paired:
    name = f"champion {champion.version}"
    for key, what in (("tokenizer_sha256", "tokenizer"), ("template_sha256", "chat template")):
        if champion.tags.get(key) != challenger.tags.get(key):  # rows are encoded for one of the two
            return Paired(name, own, {}, f"it has another {what}, for which today's rows are not encoded")
    if family_of(champion) is PPO:
        return Paired(name, own, {}, "it was made with PPO, which raises the held-out loss on purpose; an SFT version "
                      "has no gold score on its prompts")  # fmt: skip
    others, problem = _results(champion, family, today)
    return Paired(name, own, others, problem)


def _gold(challenger: Version, champion: Version | None) -> tuple[Paired, Paired | None]:
    """A PPO version beside the version that it was made from and the champion, on the same prompts and judge."""
    made_from = challenger.tags.get("base_version", "")
    lines = rows._lines(challenger)
    judge = challenger.tags.get("judge.gold")

    def column(found: list[dict], which: str) -> rows.Values:
        return {(row["id"], judge): (row[f"gold_{which}"], 1.0) for row in found if f"gold_{which}" in row}

    own, before = column(lines, "ppo"), column(lines, BEFORE.rstrip("_"))
    base = Paired(f"{made_from or 'the version'} that it was made from", own, before)
    if champion is None:
        return base, None
    name = f"champion {champion.version}"
    if f"{champion.name}/{champion.version}" == made_from:
        return base, Paired(name, own, before)
    if champion.tags.get("method") != PPO.method:
        return base, Paired(name, own, {}, "it has no gold score on these prompts, and the challenger was not made "
                            "from it")  # fmt: skip
    if champion.tags.get("judge.gold") != judge or champion.tags.get("test_rows") != challenger.tags.get("test_rows"):
        return base, Paired(name, own, {}, "its gold scores are of other prompts or of another gold scorer")
    return base, Paired(name, own, column(rows._lines(champion), "ppo"))


def base_losses(version: Version) -> rows.Values:
    """(sum of -log p of the pretrained base, tokens) by held-out row; {} if its evaluation left none."""
    return {row["row_id"]: (row["base"], float(row["tokens"])) for row in rows._table(version, "rows.parquet")}


# --- what a version says of itself ------------------------------------------------------------------------------------


def _forgetting(version: Version, family: Family) -> dict[str, float | None] | None:
    """Set -> upper end of F = score before - score after; None of a classifier or a reward model."""
    if family not in (SFT, PPO):
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


def scored(family: Family, folder: Path, sha256: str, today: str) -> rows.Values:
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
    base = [] if family is CLASSIFIER else ["--base", str(BASE)]
    command = [sys.executable, "-m", "ajuste.judging.score_rows", family.kind, str(folder), str(out), *base, *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise DataError(f"scoring {folder} took longer than {TIMEOUT} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1].removeprefix("error: ") if lines else f"the process ended with {done.returncode}"
        raise DataError(f"it cannot be scored on them: {said}")
