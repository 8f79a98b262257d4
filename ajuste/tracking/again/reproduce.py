"""Can a recorded result be made again? A clean clone, a home of its own, data by digest, `dvc repro --force`.

First what is claimed (ajuste/tracking/again/claim.py): a git revision with its dvc.lock, or a registered version with
what its run recorded. Then the inputs (ajuste/tracking/again/inputs.py): what stands at the commit against what the
lock records. A changed parameter, source line, data row or registered file is named, and nothing is run, since other
inputs give another result. Then the stages run again in the clone and every out is compared
(ajuste/tracking/again/outs.py): on the kind of processor that made it, an out is bit-equal or different; on another
kind it may lie within a tolerance, unless `compute.portable` promised equal bytes there too. The verdict on a version
becomes its tag `reproduced`.

`check` is the cheap part, in seconds: does dvc.lock fit the sources, without running anything?
"""

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.core.params import read_yaml
from ajuste.tracking.again import outs as again_outs
from ajuste.tracking.again.claim import Claim, claim_of
from ajuste.tracking.again.hardware import hardware
from ajuste.tracking.again.inputs import MANY, cache_folder, input_differences
from ajuste.tracking.again.outs import DIFFERENT, EQUAL, WITHIN, Out
from ajuste.tracking.project import dvc, git, lock
from ajuste.tracking.runs.store import client

TAG = "reproduced"
TOLERANCE = 1e-3  # |a - b| / max(1, |a|), on other hardware


@dataclass
class Verdict:
    """`wrong` names inputs and registered files that are not the recorded ones: then nothing was run, `outs` is []."""

    title: str
    commit: str
    outs: list[Out] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hardware: str = ""
    tolerance: float | None = None  # None: the hardware of the record, or portable: equal bytes are asked for

    @property
    def equal(self) -> bool:
        """Whether every out is bit-equal."""
        return bool(self.outs) and not self.wrong and all(out.verdict == EQUAL for out in self.outs)

    @property
    def good(self) -> bool:
        """Whether every out is bit-equal or, on other hardware, within the tolerance."""
        return bool(self.outs) and not self.wrong and all(out.verdict in (EQUAL, WITHIN) for out in self.outs)

    @property
    def word(self) -> str:
        """bit-equal, within tolerance, different, or not as recorded (found before anything ran)."""
        if self.wrong:
            return "not as recorded"
        return "bit-equal" if self.equal else WITHIN if self.good else "different"

    @property
    def differences(self) -> list[str]:
        """What is not the recorded one, each in a line."""
        return self.wrong + [out.text() for out in self.outs if out.verdict != EQUAL]


def reproduce(reference: str = "HEAD", keep: Path | None = None, tolerance: float = TOLERANCE) -> Verdict:
    """Make a revision or a registered version again and compare. `keep` is where the clone stays; else it is removed.

    Raises UsageError for an unknown reference, DataError when the run itself fails or the data cannot be had.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UsageError(f"--tolerance must be a number of at least 0 (got {tolerance})")
    if keep is not None and keep.exists():
        raise UsageError(f"{keep} exists: name a new folder for the clone")
    claim = claim_of(reference)
    verdict = Verdict(claim.title, claim.commit, wrong=claim.wrong, notes=claim.notes)
    if not verdict.wrong and claim.version is None and claim.commit == git.head():
        # uncommitted changes would not be in the clone: they are named, not ignored
        verdict.wrong += input_differences(claim.lock, Path.cwd())
        changed = [] if verdict.wrong else git.changed_files()
        if changed:
            raise DataError(f"uncommitted changes would not be in the clone: commit {', '.join(changed[:MANY])} first")
    if not verdict.wrong:
        with tempfile.TemporaryDirectory(prefix="ajuste-reproduce-") as scratch:
            _make(claim, (keep or Path(scratch) / "clone").resolve(), tolerance, verdict)
    if claim.version:
        client().set_model_version_tag(claim.version.name, claim.version.version, TAG, tag(verdict))
    return verdict


def _make(claim: Claim, clone: Path, tolerance: float, verdict: Verdict) -> None:
    """Clone, check the inputs there, run, and put what came out into `verdict`."""
    _clone(claim, clone)
    verdict.wrong += input_differences(claim.lock, clone)
    if verdict.wrong:
        return
    made = _run(clone, claim.target)
    verdict.hardware = hardware(_device(clone))
    if claim.hardware != verdict.hardware or not verdict.hardware.startswith("cpu"):
        asked = "equal bytes are asked for, compute.portable promises them"
        if not _portable(clone):
            verdict.tolerance, asked = tolerance, f"tolerance {tolerance:g}"
        before = claim.hardware or "hardware that nobody recorded"
        verdict.notes.append(f"made on {before}, again on {verdict.hardware}: {asked}")
    kept = {}
    if claim.version and claim.target:
        kept = {out["path"]: claim.version.path for out in claim.lock[claim.target].get("outs", [])}
    verdict.outs = again_outs.compare(claim.lock, made, clone, verdict.tolerance, kept)


def check(folder: Path | None = None) -> list[str]:
    """What is stale in the project of `folder` (default: here), each in a line; nothing is run.

    DVC's own words (`dvc repro --dry --allow-missing`: a clone without models is fine), and which line, row or
    parameter it is. Raw data that is not there is not compared.
    """
    folder = folder or Path.cwd()
    recorded = lock.parse((folder / "dvc.lock").read_text(encoding="utf-8"))
    if not recorded:
        raise DataError("dvc.lock is empty: there is no result to check; `ajuste run` makes the first")
    absent = not (folder / "data").is_dir()
    lines = [line for line in input_differences(recorded, folder)
             if not (absent and line.startswith("data/") and line.endswith(" is missing"))]
    missing = [name for name in read_yaml(folder / "dvc.yaml")["stages"] if name not in recorded]
    lines += [f"stage {name} is not in dvc.lock: it has not run" for name in missing]
    done = _dvc_in(folder, "repro", "--dry", "--allow-missing", capture_output=True)
    stale = re.findall(r"Running stage '([^']+)'", done.stdout)
    if done.returncode != 0:
        stuck = re.search(r"failed to reproduce '([^']+)'", done.stderr)
        if not (absent and stuck):
            raise DataError(f"dvc repro --dry failed: {dvc.last_error(done.stderr)}")
        stale.append(stuck[1])  # a stale stage that reads raw data: DVC cannot look further without it
    return lines + ([f"DVC would run stage {', '.join(stale)}"] if stale else [])


def tag(verdict: Verdict) -> str:
    """The verdict as the JSON of a version's tag."""
    finite = [out.largest for out in verdict.outs if math.isfinite(out.largest)]
    return json.dumps({
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "verdict": verdict.word, "commit": verdict.commit,
        "hardware": verdict.hardware, "outs": len(verdict.outs),
        **({"tolerance": verdict.tolerance, "largest": max(finite, default=0.0)} if verdict.tolerance is not None
           else {}),
        **({"differences": [line[:200] for line in verdict.differences[:MANY]]} if verdict.differences else {}),
    })  # fmt: skip


def report(verdict: Verdict) -> str:
    """The verdict for a person."""
    if verdict.equal:
        lines = [f"bit-equal: all {len(verdict.outs)} outs of {verdict.title} were made again with the same hashes"]
    elif verdict.good:
        close = sum(out.verdict == WITHIN for out in verdict.outs)
        lines = [f"within tolerance: of {len(verdict.outs)} outs of {verdict.title}, {len(verdict.outs) - close} are "
                 f"bit-equal, and no figure of the other {close} differs by more than {verdict.tolerance:g}, "
                 "|a - b| / max(1, |a|)"]
    elif verdict.wrong:
        lines = [f"{verdict.title} is not as recorded, so nothing was run:"]
    else:
        beyond = sum(out.verdict == DIFFERENT for out in verdict.outs)
        asked = "equal bytes" if verdict.tolerance is None else f"the tolerance of {verdict.tolerance:g} a figure"
        lines = [f"different: of {len(verdict.outs)} outs of {verdict.title}, {beyond} miss {asked}:"]
    lines += [f"  {line}" for line in verdict.differences]
    return "\n".join(lines + [f"  note: {note}" for note in verdict.notes])


# --- the clone --------------------------------------------------------------------------------------------------------


def _clone(claim: Claim, clone: Path) -> None:
    """A clone at the commit with the recorded params.yaml, its data from the cache by digest, a home of its own."""
    root = git.run("rev-parse", "--show-toplevel").strip()
    git.run("clone", "--quiet", "--no-checkout", root, str(clone))
    try:
        git.run("-C", str(clone), "checkout", "--quiet", "--detach", claim.commit)
    except UsageError:  # of a revision that no branch holds any more
        git.run("-C", str(clone), "fetch", "--quiet", root, claim.commit)
        git.run("-C", str(clone), "checkout", "--quiet", "--detach", claim.commit)
    if claim.params is not None:
        (clone / "params.yaml").write_text(claim.params, encoding="utf-8")
    if claim.data is not None and _digest(clone) != claim.data:
        (clone / "data.dvc").write_text(f"outs:\n- md5: {claim.data}\n  hash: md5\n  path: data\n", encoding="utf-8")
    assets = home() / ".assets"
    if assets.exists():
        (clone / ".assets").symlink_to(assets)
    _dvc_in(clone, "remote", "add", "--local", "--default", "origin-cache", cache_folder(), capture_output=True)
    done = _dvc_in(clone, "pull", "--quiet", "data.dvc", capture_output=True)
    if done.returncode != 0 and dvc.has_remote():
        dvc.run("fetch", "--quiet", "--all-commits", "data.dvc")  # into the cache; the working tree is not touched
        done = _dvc_in(clone, "pull", "--quiet", "data.dvc", capture_output=True)
    if done.returncode != 0:
        reason = dvc.last_error(done.stderr)
        raise DataError(f"the data of {claim.title}, {_digest(clone)}, is neither in the DVC cache nor in its remote: "
                        f"`ajuste data pull` brings that of the working tree ({reason})")


def _digest(clone: Path) -> str:
    path = clone / "data.dvc"
    return read_yaml(path)["outs"][0]["md5"] if path.exists() else ""


def _run(clone: Path, target: str | None) -> dict:
    """The stage and what it needs, or all stages, again, whatever the caches hold; returns the new lock."""
    done = _dvc_in(clone, "repro", "--force", "--no-run-cache", *([target] if target else []), stdout=sys.stderr)
    if done.returncode != 0:
        raise DataError("the run in the clone failed; its last lines are above")
    return lock.parse((clone / "dvc.lock").read_text(encoding="utf-8"))


def _device(clone: Path) -> str:
    """cuda if a stage computed there, else cpu."""
    states = (json.loads(path.read_text(encoding="utf-8")) for path in (clone / ".state").glob("*.json"))
    return max((state.get("device") or "cpu" for state in states), default="cpu", key=lambda device: device != "cpu")


def _portable(clone: Path) -> bool:
    """Whether its stages take the one kernel of every x86-64 processor (ajuste/core/arithmetic.py)."""
    return (read_yaml(clone / "params.yaml").get("compute") or {}).get("portable") is True


def _dvc_in(clone: Path, *args: str, **options: object) -> subprocess.CompletedProcess[str]:
    env = {**dvc.environment(), "AJUSTE_HOME": str(clone)}
    env.pop("AJUSTE_FLOW_PID", None)
    return subprocess.run([*dvc.DVC, *args], cwd=clone, env=env, text=True, **options)
