"""Every measurement of benchmarks/, one after the other, with a time bound each: `make bench`.

    make bench                          all, in the order of SCRIPTS; hours
    make bench ONLY="startup data"      some
    python -m benchmarks.suite --only startup --out FOLDER [--before REVISION]

Of each script it leaves, in reports/bench/:

    NAME.json   name, command, status, why, began, seconds, commit, machine (cpu, cores, flags, memory_gb, gpu, python),
                load (average before and after), values: [{name, unit, runs, median, spread: [lowest, highest]}]
    NAME.log    what it printed; NAME.md its page, where it writes one

status: `done`; `failed` and `over time`, after which the others go on and the exit code is 1; `not run`, with what is
missing: a peer, a GPU, the artifacts of the default run. Nothing in docs/measured/ is touched: a page is taken over by
hand, when the machine was quiet. mutation.py is left out: it counts planted faults that the tests find, which is no
figure of speed, takes hours, and has a virtual environment of its own (`make mutation`).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ajuste.cli.processes import start, stop
from ajuste.tracking.project import git
from benchmarks.results import VALUES, gpu, machine, read

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("reports/bench")
PROBE = Path(".probe/schemathesis/bin/st")
LEFT_OUT = {"mutation": "planted faults that the tests find: hours, and an environment of its own"}


class Script(NamedTuple):
    """A script of benchmarks/: what is given to it, how long it may take, and what it cannot do without."""

    name: str
    minutes: int
    options: str = ""  # {out}: its page, {before}: an earlier revision
    environment: dict[str, str] = {}
    needs: str = ""  # one of NEEDS

    def command(self, out: Path, before: str) -> list[str]:
        """Of the process, without the Python in front."""
        given = self.options.format(out=out / f"{self.name}.md", before=before)
        return ["-m", f"benchmarks.{self.name}", *given.split()]


ONE, WAITING, PAGE = {"OMP_NUM_THREADS": "1"}, {"OMP_WAIT_POLICY": "PASSIVE"}, "--out {out}"
SCRIPTS = (
    Script("startup", 15, environment=ONE),
    Script("data", 15, needs="data"),
    Script("registry", 15),
    Script("rollback", 10),
    Script("alias", 10),
    Script("redaction", 5),
    Script("schemas", 30, str(PROBE), needs="schemathesis"),
    Script("plan", 40, PAGE, needs="run"),
    Script("large", 60),
    Script("latency", 20, environment=WAITING),
    Script("serving", 30, environment=WAITING, needs="run"),
    Script("load", 30, "--before {before}", WAITING, "run"),
    Script("filters", 20, needs="run"),
    Script("classify", 30, PAGE, needs="run"),
    Script("sft", 60, PAGE, needs="trl"),
    Script("reward", 30, PAGE, needs="trl"),
    Script("dpo", 40, PAGE, needs="trl"),
    Script("ppo", 30, PAGE, needs="run"),
    Script("grpo", 40, PAGE, needs="trl"),
    Script("rollout", 40, PAGE, needs="run"),
    Script("sampler_gap", 20, PAGE, needs="run"),
    Script("revisions", 40, "{before} " + PAGE, needs="run"),
    Script("drift", 30, needs="run"),
    Script("gate", 60, PAGE, ONE),
    Script("calibration", 60, PAGE, ONE),
    Script("neighbour", 60, PAGE, needs="run"),
    Script("gpu", 15, PAGE, needs="gpu"),
)


def _is_file(path: str) -> bool:
    return Path(path).is_file()


NEEDS = {
    "data": (lambda: Path("data/reviews").is_dir(), "there is no data/: `ajuste data pull`"),
    "run": (lambda: _is_file("artifacts/merged/ppo/model.safetensors") and _is_file("artifacts/base/decoder/base.json"),
            "the default run's artifacts are not here: `make run`"),
    "trl": (lambda: bool(os.environ.get("AJUSTE_TRL_PYTHON")), "$AJUSTE_TRL_PYTHON names no python that has TRL 1.16"),
    "schemathesis": (PROBE.is_file, f"{PROBE} is not installed: see benchmarks/schemas.py"),
    "gpu": (lambda: gpu() is not None, "no GPU answers here"),
}  # fmt: skip


def missing(script: Script) -> str:
    """What the script cannot do without and is not here; "" if nothing."""
    asked = [script.needs] if script.needs else []
    if script.needs == "trl":
        asked.append("run")
    return "; ".join(NEEDS[need][1] for need in asked if not NEEDS[need][0]())


def measure(script: Script, out: Path, before: str, seconds: float | None = None) -> dict:
    """Run a script to its end or its bound, and return what NAME.json holds."""
    command = script.command(out, before)
    kept = out / f"{script.name}.values"
    kept.unlink(missing_ok=True)
    said = [*(f"{key}={text}" for key, text in script.environment.items()), "python", *command]
    found = {"name": script.name, "command": " ".join(said), "status": "not run", "why": missing(script),
             "began": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": 0.0, "commit": git.head(),
             "machine": machine(), "load": [os.getloadavg()[0]] * 2, "values": []}  # fmt: skip
    if found["why"]:
        return found
    environment = {**os.environ, **script.environment, VALUES: str(kept.resolve())}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began, log = time.monotonic(), out / f"{script.name}.log"
    process = start([sys.executable, *command], log, environment, Path.cwd())
    try:
        code = process.wait(60 * script.minutes if seconds is None else seconds)
        found["status"] = "failed" if code else "done"
        found["why"] = f"exit code {code}: {_last(log)}" if code else ""
    except subprocess.TimeoutExpired:
        found["status"], found["why"] = "over time", f"ended after {script.minutes} minutes"
    finally:
        stop(process.pid)  # nothing when it has ended, its children included
    found["seconds"] = round(time.monotonic() - began, 1)
    found["load"][1] = os.getloadavg()[0]
    found["values"] = read(kept)
    kept.unlink(missing_ok=True)
    if found["status"] == "done" and not found["values"]:
        # a comparison without its peer ends well and says so
        found["status"], found["why"] = "not run", _last(log)
    return found


def _last(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else "it printed nothing"


def run(scripts: Sequence[Script], out: Path, before: str) -> list[dict]:
    """Measure with each script; NAME.json is written as soon as it is over, and a line printed."""
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for script in scripts:
        print(f"{script.name:<14} begins, at most {script.minutes} minutes", flush=True)
        found = measure(script, out, before)
        (out / f"{script.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        figures = f"{len(found['values'])} figures" if found["values"] else found["why"]
        print(f"{script.name:<14} {found['status']}, {found['seconds']:.0f} s: {figures}", flush=True)
        results.append(found)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    names = [script.name for script in SCRIPTS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--before", default="HEAD~1", help="the revision that load and revisions compare with")
    options = parser.parse_args(arguments)
    chosen = [script for script in SCRIPTS if script.name in options.only]
    results = run(chosen, options.out, options.before)
    wrong = [found["name"] for found in results if found["status"] in ("failed", "over time")]
    if wrong:
        sys.exit(f"error: {', '.join(wrong)}: see the logs in {options.out}")


if __name__ == "__main__":
    main()
