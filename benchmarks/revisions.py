"""An earlier revision of this repository beside the working tree: SFT and PPO, the same files, dtype and threads.

    python -m benchmarks.revisions REVISION [--rounds 3] [--steps 10] [--updates 4] [--out docs/measured/revisions.md]

Reads the default run's artifacts. Each run is a process of its own, in turns, and each revision runs its own side of
benchmarks/sft.py and benchmarks/ppo.py (benchmarks/sides/), in bfloat16, so that a safeguard that was added between
the two is paid where it stands: the rate is that of the steps and updates after warm-up, start-up stands beside it.
The ratio of a pair of neighbours in time disturbs least; the median of these ratios is what counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import ppo, sft
from benchmarks.beside import in_turn, loads_of, publish, result_of
from benchmarks.results import value

RATES = {"sft": "tokens_per_second", "ppo": "episodes_per_second"}
UNITS = {"sft": "trained tokens / s", "ppo": "episodes / s"}


def run(kind: str, root: Path, options: argparse.Namespace, work: Path, seed: int) -> dict:
    """One run of the revision that stands at `root`. Raises SystemExit with its last lines when it fails."""
    here = Path.cwd()
    shared = ["--dtype", "bfloat16", "--seed", seed, "--threads", options.threads, "--keep-memory", "--work", work]
    if kind == "sft":
        own = ["ours", "--base", here / "artifacts/base/decoder", "--rows", "ragged", "--batch-rows", 8,
               "--max-tokens", 256]  # fmt: skip
    else:
        own = ["trunk", "--base", here / "artifacts/merged/instruct", "--reward", here / "artifacts/adapters/reward",
               "--merged", here / "artifacts/merged/reward", "--updates", options.updates, "--batch-rows", 16,
               "--new-tokens", 24, "--epochs", 4]  # fmt: skip
    return result_of(kind, [sys.executable, "-m", f"benchmarks.sides.{kind}", *own, *shared], options.threads, root)


def report(pairs: dict[str, list[tuple[dict, dict]]], names: tuple[str, str], options: argparse.Namespace) -> str:
    """The pairs (earlier, now) of each kind as Markdown."""
    lines = [
        "# This revision beside an earlier one", "",
        f"`python -m benchmarks.revisions {options.revision} --rounds {options.rounds}`: {names[1]} beside {names[0]},",
        "SmolLM2-135M with LoRA in bfloat16, in turns, each run a process of its own.", "",
        f"| | {names[0]} | {names[1]} | ratio, median of the pairs | each pair | start-up s | peak MB | losses equal |",
        "|---|---:|---:|---:|---|---|---|---|",
    ]  # fmt: skip
    for kind, found in pairs.items():
        rates = [[side[RATES[kind]] for side in pair] for pair in found]
        ratios = [now / before for before, now in rates]
        startup, peak = (" -> ".join(f"{median(pair[i][key] for pair in found):.{digits}f}" for i in (0, 1))
                         for key, digits in (("startup_s", 1), ("peak_mb", 0)))  # fmt: skip
        equal = all(_losses(before) == _losses(now) for before, now in found)
        lines.append(
            f"| {kind}, {UNITS[kind]} | {median(r[0] for r in rates):.2f} | {median(r[1] for r in rates):.2f} | "
            f"{median(ratios):.3f} | {', '.join(f'{ratio:.3f}' for ratio in ratios)} | {startup} | {peak} | "
            f"{'yes, to the last digit' if equal else 'NO'} |"
        )
    lines += ["", loads_of([side for found in pairs.values() for pair in found for side in pair])]
    return "\n".join(lines) + "\n"


def _losses(result: dict) -> list:
    """What a run came to, without its seconds."""
    if "last_loss" in result:
        return [result["first_loss"], result["last_loss"]]
    return [[row[name] for name, _ in ppo.CURVES] for row in result["rows"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision")
    parser.add_argument("--kinds", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--updates", type=int, default=4, help="the first one warms up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("docs/measured/revisions.md"))
    options = parser.parse_args()
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        work, earlier = Path(folder) / "work", Path(folder) / "earlier"
        work.mkdir()
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", earlier, options.revision], check=True)
        try:
            sft.write_rows(here / "artifacts/encoded/instructions", work, options.steps, 8, 256, 128)
            ppo.write_prompts(
                argparse.Namespace(
                    updates=options.updates, batch_rows=16, base=here / "artifacts/merged/instruct",
                    encoded=here / "artifacts/encoded/preferences", merged=here / "artifacts/merged/reward",
                ), work,
            )  # fmt: skip
            pairs: dict[str, list[tuple[dict, dict]]] = {kind: [] for kind in options.kinds}
            for turn in range(options.rounds):
                for kind in options.kinds:
                    found = {root: run(kind, root, options, work, turn) for root in in_turn((earlier, here), turn)}
                    pairs[kind].append((found[earlier], found[here]))
                    print(json.dumps({kind: [side[RATES[kind]] for side in pairs[kind][-1]]}), flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", earlier], check=True)
    names = tuple(
        subprocess.run(["git", "rev-parse", "--short", name], check=True, capture_output=True, text=True).stdout.strip()
        for name in (options.revision, "HEAD")
    )
    for kind, found in pairs.items():
        for place, name in enumerate(names):
            value(f"{kind}, {'earlier' if place == 0 else 'now'} ({name})", UNITS[kind],
                  [pair[place][RATES[kind]] for pair in found])  # fmt: skip
    publish(options.out, report(pairs, names, options))


if __name__ == "__main__":
    main()
