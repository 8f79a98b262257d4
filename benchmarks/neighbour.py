"""What a busy neighbour costs a stage: seconds beside a process that takes one core, over seconds on quiet cores.

    python -m benchmarks.neighbour [--stages ppo] [--rounds 1] [--out docs/measured/neighbour.md]

Each stage is started in two ways: as the flow of `ajuste run` starts it (ajuste/tracking/project/dvc.py), and by a
person's `dvc repro --force --single-item STAGE`, with nothing of ours around it. It runs in a git worktree of HEAD with
params.yaml of the current folder, the default run's artifacts as hard links, fewer rows and steps (SHORT), and a home
of its own, so that nothing of this checkout changes and nothing is resumed. The neighbour is a Python process at the
same priority that counts for ever. Seconds are those that the stage says it took (.state), imports among them.

With T threads on as many cores a fair scheduler leaves the thread that shares a core half of it, so 2 is what is lost
to anybody who waits for all threads after each product; what is beyond it is spinning that takes the core from the
thread that is waited for. At most LIMIT is asked, and the same bytes in every run: else the exit code is 1. --spins is
another GOMP_SPINCOUNT than that of ajuste/core/arithmetic.py, for comparison (30000000000: for ever).
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import yaml

from benchmarks.beside import loads_of, publish
from benchmarks.results import value

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 2.2
WAYS = ("ajuste run", "dvc repro")
FLOW = """
import sys
from pathlib import Path
from ajuste.tracking.project import dvc
outcome = dvc.repro({stage!r}, Path("flow.log"), force=True)
print(outcome.output)
sys.exit(outcome.code)
"""
ROWS = {  # of the encoded sets, by stage: the lowest row ids
    "classify_full": {"reviews": {"train": 1600, "validation": 200, "test": 200}},
    "instruct": {"instructions": {"train": 120, "validation": 16, "test": 16}},
    "reward": {"preferences": {"train": 192, "validation": 32, "test": 64}},
    "ppo": {},
}
SHORT = {
    "classify_full": {"classify": {"full": {"epochs": 1, "evaluations": 1}}},
    "instruct": {"instruct": {"epochs": 1, "evaluations": 1}},
    "reward": {"reward": {"epochs": 1, "evaluations": 1, "samples": 32}},
    "ppo": {"ppo": {"updates": 2, "record": [], "radar_every": 2, "radar_prompts": 16}},
}


def merged(params: dict, changes: dict) -> dict:
    """params with the values of `changes`, which has the same sections. Raises KeyError for a key that is not there."""
    found = dict(params)
    for key, changed in changes.items():
        found[key] = merged(params[key], changed) if isinstance(params[key], dict) else changed
    return found


def lay_out(work: Path, stage: str, artifacts: Path, params: dict) -> None:
    """What the stage reads, in a worktree at `work`: params.yaml, and its deps as hard links, the rows cut."""
    import pyarrow.parquet as pq

    (work / "params.yaml").write_text(yaml.safe_dump(merged(params, SHORT[stage]), sort_keys=False), encoding="utf-8")
    deps = yaml.safe_load((work / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["deps"]
    for name in (Path(dep) for dep in deps if dep.startswith("artifacts/")):
        source = artifacts / name.relative_to("artifacts")
        if not source.exists():
            raise SystemExit(f"{source} is not there: `ajuste run` makes it, or name another folder with --artifacts")
        for file in sorted(source.rglob("*")):
            target = work / name / file.relative_to(source)
            if file.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(file, target)
    for folder, splits in ROWS[stage].items():
        for split, number in splits.items():
            path = work / "artifacts/encoded" / folder / f"{split}.parquet"
            table = pq.read_table(path).sort_by("row_id").slice(0, number)
            path.unlink()  # the default run's own file stays
            pq.write_table(table, path)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another disk
        target.write_bytes(file.read_bytes())


@contextlib.contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """A process that takes one core, if `busy`."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def run(stage: str, way: str, busy: bool, work: Path, place: Path, spins: str | None) -> dict:
    """One run of the stage in `work`, with a new home at `place`. Raises SystemExit with its last lines if it fails."""
    dropped = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")  # what a stage has to set for itself
    environment = {key: text for key, text in os.environ.items() if key not in dropped}
    environment |= {"AJUSTE_HOME": str(place), "PYTHONPATH": str(work), "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1",
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
    if spins:
        environment["GOMP_SPINCOUNT"] = spins
    dvc = [sys.executable, "-P", "-m", "dvc", "repro", "--force", "--single-item", stage]
    command = [sys.executable, "-c", FLOW.format(stage=stage)] if way == "ajuste run" else dvc
    with neighbour(busy):
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode or f"Running stage '{stage}'" not in done.stdout:
        raise SystemExit(f"{stage}, {way}: it did not run:\n{(done.stdout + done.stderr)[-3000:]}")
    state = json.loads((place / ".state" / f"{stage}.json").read_text(encoding="utf-8"))
    outs = yaml.safe_load((work / "dvc.lock").read_text(encoding="utf-8"))["stages"][stage]["outs"]
    return {"stage": stage, "way": way, "busy": busy, "seconds": state["seconds"], "load": os.getloadavg()[0],
            "threads": state["threads"], "outs": {out["path"]: out["md5"] for out in outs}}  # fmt: skip


def same_bytes(results: Sequence[dict], stage: str) -> bool:
    """Whether all runs of the stage left the same outs."""
    outs = [result["outs"] for result in results if result["stage"] == stage]
    return all(one == outs[0] for one in outs)


def ratio(results: Sequence[dict], stage: str, way: str) -> tuple[float, float, float]:
    """(seconds quiet, seconds beside the neighbour, their ratio), medians over the rounds."""
    quiet, busy = (median(r["seconds"] for r in results if (r["stage"], r["way"], r["busy"]) == (stage, way, some))
                   for some in (False, True))  # fmt: skip
    return quiet, busy, busy / quiet


def report(results: Sequence[dict], options: argparse.Namespace) -> str:
    """The results as Markdown."""
    lines = [
        "# A busy neighbour", "",
        f"`python -m benchmarks.neighbour --rounds {options.rounds}"
        f"{f' --spins {options.spins}' if options.spins else ''}`: stages with fewer rows and steps than the default",
        f"run's, {results[0]['threads']} threads on {os.cpu_count()} cores ({platform.machine()}), quiet and beside "
        "one process that takes a core.",
        "Seconds of the stage's own process, medians over the rounds.", "",
        "| stage | started by | quiet, s | beside a neighbour, s | ratio | wanted | same bytes |",
        "|---|---|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    for stage in dict.fromkeys(result["stage"] for result in results):
        for way in WAYS:
            quiet, busy, times = ratio(results, stage, way)
            same = "yes" if same_bytes(results, stage) else "NO"
            lines.append(f"| `{stage}` | `{way}` | {quiet:.1f} | {busy:.1f} | {times:.2f} | {LIMIT} | {same} |")
    return "\n".join([*lines, "", loads_of(results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=SHORT, default=list(SHORT))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--spins", help="GOMP_SPINCOUNT of the stages")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="of a default run")
    parser.add_argument("--out", type=Path, default=Path("docs/measured/neighbour.md"))
    options = parser.parse_args()
    params, artifacts, results = yaml.safe_load(Path("params.yaml").read_text()), options.artifacts.resolve(), []
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on the artifacts' disk
        for stage in options.stages:
            work = Path(folder).resolve() / stage
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", work, "HEAD"], cwd=ROOT, check=True)
            try:
                lay_out(work, stage, artifacts, params)
                for turn in range(options.rounds):
                    for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
                        for busy in (False, True):
                            place = Path(folder).resolve() / f"{stage}-{way.split()[0]}-{busy}-{turn}"
                            results.append(run(stage, way, busy, work, place, options.spins))
                            print(json.dumps(results[-1]), flush=True)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", work], cwd=ROOT, check=True)
    for result in results:
        kind = "beside a neighbour" if result["busy"] else "quiet"
        value(f"{result['stage']}, {result['way']}, {kind}", "s", [result["seconds"]])
    publish(options.out, report(results, options))
    slow = [f"{stage} by {way} {ratio(results, stage, way)[2]:.2f}" for stage in options.stages for way in WAYS
            if ratio(results, stage, way)[2] > LIMIT]  # fmt: skip
    other = [stage for stage in options.stages if not same_bytes(results, stage)]
    if slow or other:
        sys.exit(f"error: over {LIMIT} times the quiet seconds: {', '.join(slow) or 'none'}; other bytes: "
                 f"{', '.join(other) or 'none'}")


if __name__ == "__main__":
    main()
