"""PPO beside TRL 1.12's PPOTrainer: same base, reward model, prompts, lengths, batch, epochs, dtype and threads.

    python -m venv .trl112 && .trl112/bin/pip install trl==1.12.0 peft==0.21.2 torch==2.13.0 transformers==5.23.0 psutil
    python -m benchmarks.ppo --peer-python .trl112/bin/python [--rounds 1] [--updates 4] [--out docs/measured/ppo.md]

Later releases of TRL have no PPO. Reads the default run's artifacts/merged/instruct, artifacts/adapters/reward,
artifacts/merged/reward and artifacts/encoded/preferences. Each run is a process of its own (benchmarks/sides/ppo.py),
in turns: ours with the value head on the policy's trunk, ours with a value adapter of its own, TRL with a LoRA policy
and a LoRA value model. The same hyper-parameters, TRL's defaults where it has them; no checkpoints between updates.

Episodes a second: of the updates after the first one. Peak memory: the largest resident memory from when everything
was imported, less what it was then. First both sides score the same prompts, and the mean rewards must be equal. The
samples are drawn by each side's own generator, so losses and scores beside the times are alike and never equal.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.beside import in_turn, loads_of, publish, result_of
from benchmarks.results import values

NAMES = {"trunk": "Ajuste, value on the trunk", "adapter": "Ajuste, value adapter", "trl": "TRL 1.12"}
WANTED = {"trunk": "2.0", "adapter": "1.3"}
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.02}
FIGURES = ("episodes_per_second", "seconds", "rollout_s", "score_s", "learn_s", "cpu_s", "peak_mb", "startup_s")
CURVES = (("score", 2), ("kl", 2), ("policy_loss", 4), ("value_loss", 3), ("clip_fraction", 3))


def write_prompts(options: argparse.Namespace, work: Path) -> None:
    """prompts.json: the first training prompts by row id, one an episode, and the ids that end and that pad."""
    import pyarrow.parquet as pq

    from ajuste.learning.text import chat
    from ajuste.models.folder import load_tokenizer, read_card

    tokenizer = load_tokenizer(options.base)
    table = pq.read_table(options.encoded / "prompts_train.parquet").sort_by("row_id")
    number = options.updates * options.batch_rows
    if table.num_rows < number:
        raise SystemExit(f"{options.encoded} has {table.num_rows} prompts, {number} are needed: lower --updates")
    given = {
        "prompts": table["prompt_ids"].to_pylist()[:number],
        "stop_ids": chat.end_of_turn(tokenizer),
        "pad_id": read_card(options.merged)["pad_id"],
    }
    (work / "prompts.json").write_text(json.dumps(given), encoding="utf-8")


def run(side: str, dtype: str, options: argparse.Namespace, work: Path, seed: int) -> dict:
    """One run of benchmarks/sides/ppo.py. Raises SystemExit with its last lines when it fails."""
    command = [
        options.peer_python if side == "trl" else sys.executable, "-m", "benchmarks.sides.ppo", side,
        "--work", work, "--base", options.base, "--reward", options.reward, "--merged", options.merged,
        "--dtype", dtype, "--updates", options.updates, "--batch-rows", options.batch_rows, "--seed", seed,
        "--new-tokens", options.new_tokens, "--epochs", options.epochs, "--threads", options.threads,
    ]  # fmt: skip
    if options.allocator == "kept":
        command.append("--keep-memory")
    return result_of(side, command, options.threads)


def check(results: list[dict]) -> None:
    """Raise SystemExit unless all sides give the same prompts the same mean reward."""
    for dtype in dict.fromkeys(result["dtype"] for result in results):
        mine = [result for result in results if result["dtype"] == dtype]
        if max(r["check"] for r in mine) - min(r["check"] for r in mine) > TOLERANCE[dtype]:
            raise SystemExit(f"{dtype}: the reward models differ: " + ", ".join(f"{r['check']:.5f}" for r in mine))


def report(results: list[dict], options: argparse.Namespace) -> str:
    """The results as Markdown: medians over the rounds, ratios, and what the runs came to."""
    from ajuste.models.folder import read_card

    allocator = "the settings of ajuste/core/allocator.py" if options.allocator == "kept" else "glibc's own settings"
    lines = [
        "# PPO beside TRL 1.12",
        "",
        f"`python -m benchmarks.ppo --rounds {options.rounds} --updates {options.updates} "
        f"--threads {options.threads}`:",
        f"{read_card(options.base)['base']['id']} after instruction fine-tuning, LoRA (r = 8, every linear",
        f"layer) for policy, value and reward, {options.batch_rows} episodes an update of {options.new_tokens} new",
        f"tokens at most, {options.epochs} epochs of one minibatch, {platform.machine()},",
        f"memory allocator with {allocator} for both. The first update of a run warms up and is left",
        "out; medians over updates and rounds. Memory is the peak above what the imports take.",
        "",
        "| dtype | side | episodes / s | an update, s | rollout | score | learn | CPU s | peak MB | start-up s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    figures: dict[tuple[str, str], dict[str, float]] = {}
    for dtype in options.dtypes:
        for side in options.sides:
            mine = [r for r in results if (r["dtype"], r["side"]) == (dtype, side)]
            found = figures[dtype, side] = {name: median(r[name] for r in mine) for name in FIGURES}
            rate, *seconds, peak, startup = (found[name] for name in FIGURES)
            columns = " | ".join(f"{value:.2f}" for value in (rate, *seconds))
            lines.append(f"| {dtype} | {NAMES[side]} | {columns} | {peak:.0f} | {startup:.1f} |")
    if "trl" in options.sides:
        lines += ["", "| Ajuste beside TRL | dtype | episodes / s | by CPU time | wanted | peak memory | wanted |",
                  "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        for side in (side for side in options.sides if side != "trl"):
            for dtype in options.dtypes:
                ours, theirs = figures[dtype, side], figures[dtype, "trl"]
                speed, memory = (ours[name] / theirs[name] for name in ("episodes_per_second", "peak_mb"))
                name, cpu = NAMES[side].partition(", ")[2], theirs["cpu_s"] / ours["cpu_s"]
                lines.append(f"| {name} | {dtype} | {speed:.2f} | {cpu:.2f} | {WANTED[side]} | {memory:.2f} | 0.5 |")
    lines += [
        "",
        "TRL computes rows that have ended on to the longest of the batch, and the padding before short prompts; ours",
        "does neither, reads what all prompts begin with once, and keeps one base in the place of three models.",
        "",
        "What the runs came to, update by update (first round). Each side draws its own samples, so these are alike",
        "and not equal; the mean reward of the same prompts, which no sampling touches, is equal:",
        "; ".join(f"{dtype}: " + ", ".join(f"{NAMES[r['side']]} {r['check']:.4f}" for r in first_round(results)
                                           if r["dtype"] == dtype) for dtype in options.dtypes) + ".",
        "",
        "| dtype | side | score | KL, nats a response | policy loss | value loss | clip fraction |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in first_round(results):
        curves = (", ".join(f"{row[name]:.{digits}f}" for row in r["rows"]) for name, digits in CURVES)
        lines.append(f"| {r['dtype']} | {NAMES[r['side']]} | {' | '.join(curves)} |")
    lines += ["", loads_of(results)]
    if max(r["load"] for r in results) > (os.cpu_count() or 1) + 1:
        lines.append("It had other work: the ratio by CPU time is the one to trust; seconds of the clock read high.")
    return "\n".join(lines) + "\n"


def first_round(results: list[dict]) -> list[dict]:
    """One result of each (dtype, side)."""
    return list({(r["dtype"], r["side"]): r for r in reversed(results)}.values())[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    peer_python = os.environ.get("AJUSTE_TRL112_PYTHON")
    parser.add_argument("--peer-python", default=peer_python, help="python with trl 1.12; or $AJUSTE_TRL112_PYTHON")
    parser.add_argument("--sides", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=["bfloat16", "float32"])
    parser.add_argument("--allocator", choices=["kept", "default"], default="kept", help="of both sides")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--updates", type=int, default=4, help="the first one warms up")
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", type=Path, default=Path("artifacts/merged/instruct"))
    parser.add_argument("--reward", type=Path, default=Path("artifacts/adapters/reward"))
    parser.add_argument("--merged", type=Path, default=Path("artifacts/merged/reward"))
    parser.add_argument("--encoded", type=Path, default=Path("artifacts/encoded/preferences"))
    parser.add_argument("--out", type=Path, default=Path("docs/measured/ppo.md"))
    options = parser.parse_args()
    if "trl" in options.sides and not options.peer_python:
        print("benchmarks/ppo.py: TRL is skipped: --peer-python or $AJUSTE_TRL112_PYTHON must name a python with it")
        options.sides = [side for side in options.sides if side != "trl"]
    for name in ("base", "reward", "merged", "encoded"):
        setattr(options, name, getattr(options, name).resolve())
    results = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_prompts(options, work)
        for turn in range(options.rounds):
            for dtype in options.dtypes:
                for side in in_turn(options.sides, turn):
                    results.append(run(side, dtype, options, work, seed=turn))
                    print(json.dumps(results[-1]), flush=True)
    check(results)
    values(results, {"episodes_per_second": "episodes/s", "peak_mb": "MB"}, "dtype", "side")
    publish(options.out, report(results, options))


if __name__ == "__main__":
    main()
