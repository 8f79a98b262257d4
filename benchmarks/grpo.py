"""GRPO with LoRA beside TRL 1.16's GRPOTrainer: same weights, prompts, group, lengths, dtype and threads, in turns.

    python -m venv .trl && .trl/bin/pip install trl==1.16.0 peft==0.21.2 torch==2.13.0 transformers==5.23.0 psutil
    python -m benchmarks.grpo --peer-python .trl/bin/python [--rounds 3] [--updates 4] [--out docs/measured/grpo.md]

Reads the default run's artifacts/merged/instruct and artifacts/encoded/preferences. Each run is a process of its own
(benchmarks/sides/grpo.py): ours is the loop of stage `grpo`; TRL is run at its defaults, and plain in bfloat16 without
gradient checkpointing. That both compute the same loss and gradients is what tests/invariants/test_trl_grpo.py says.
Here KL is paid in the loss at 0.04 and the score is a count of token ids, so no reward model takes time or memory.

Episodes a second: of the updates after the first one. Peak memory: the largest resident memory from when everything
was imported, less what it was then. The samples are drawn by each side's own generator, so rewards and KL beside the
times are alike and never equal.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.beside import ALLOCATOR, in_rounds, label, loads_of, options_beside_trl, publish, run_side
from benchmarks.results import values

PEERS = ("default", "plain")
NAMES = {"ours": "Ajuste", "default": "TRL 1.16, its defaults", "plain": "TRL 1.16, bfloat16"}
FIGURES = ("episodes_per_second", "seconds", "rollout_s", "score_s", "learn_s", "cpu_s", "peak_mb", "startup_s")
CURVES = (("score", 3), ("kl", 3), ("grad_norm", 2), ("length", 1))


def write_prompts(options: argparse.Namespace, work: Path) -> None:
    """prompts.json: the first training prompts by row id, one a group, and the ids that end and that pad."""
    import pyarrow.parquet as pq

    from ajuste.learning.text import chat
    from ajuste.models.folder import load_tokenizer

    tokenizer = load_tokenizer(options.base)
    table = pq.read_table(options.encoded / "prompts_train.parquet").sort_by("row_id")
    number = options.updates * options.batch_rows // options.group
    if table.num_rows < number:
        raise SystemExit(f"{options.encoded} has {table.num_rows} prompts, {number} are needed: lower --updates")
    given = {"prompts": table["prompt_ids"].to_pylist()[:number], "stop_ids": chat.end_of_turn(tokenizer),
             "pad_id": tokenizer.pad_token_id}  # fmt: skip
    (work / "prompts.json").write_text(json.dumps(given), encoding="utf-8")


def run(side: str, options: argparse.Namespace, work: Path, seed: int) -> dict:
    """One run of benchmarks/sides/grpo.py. Raises SystemExit with its last lines when it fails."""
    return run_side("benchmarks.sides.grpo", side, options, [
        "--work", work, "--base", options.base, "--updates", options.updates, "--batch-rows", options.batch_rows,
        "--group", options.group, "--new-tokens", options.new_tokens, "--epochs", options.epochs,
        "--threads", options.threads, "--seed", seed,
    ])  # fmt: skip


def report(results: list[dict], options: argparse.Namespace) -> str:
    """The results as Markdown: medians over the rounds, ratios, and what the runs came to."""
    from ajuste.models.decoder import identity_of

    lines = [
        "# GRPO beside TRL 1.16",
        "",
        f"`python -m benchmarks.grpo --rounds {options.rounds} --updates {options.updates} "
        f"--threads {options.threads}`:",
        f"{identity_of(options.base)['id']} with LoRA (r = 8, every linear layer), {options.batch_rows} episodes an",
        f"update in groups of {options.group}, {options.new_tokens} new tokens at most, {options.epochs} steps an "
        f"update, KL in the loss, bfloat16,",
        f"{options.threads} threads, {platform.machine()}. The first update of a run warms up and is left out; medians",
        "over updates and rounds, each run a process of its own, in turns. Memory is the peak above what the imports",
        "take. `+ allocator`: with the settings of ajuste/core/allocator.py.",
        "",
        "| side | episodes / s | an update, s | rollout | score | learn | CPU s | peak MB | start-up s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    figures: dict[str, dict[str, float]] = {}
    for side in dict.fromkeys(result["side"] for result in results):
        mine = [result for result in results if result["side"] == side]
        found = figures[side] = {name: median(r[name] for r in mine) for name in FIGURES}
        rate, *seconds, peak, startup = (found[name] for name in FIGURES)
        columns = " | ".join(f"{value:.2f}" for value in (rate, *seconds))
        lines.append(f"| {label(side, NAMES)} | {columns} | {peak:.0f} | {startup:.1f} |")
    lines += ["", "| Ajuste beside | episodes / s | by CPU time | wanted | peak memory | wanted |",
              "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    ours = figures["ours" + ALLOCATOR]
    for side in (side for side in figures if not side.startswith("ours")):
        speed, memory = (ours[name] / figures[side][name] for name in ("episodes_per_second", "peak_mb"))
        cpu = figures[side]["cpu_s"] / ours["cpu_s"]
        lines.append(f"| {label(side, NAMES)} | {speed:.2f} | {cpu:.2f} | 2.0 | {memory:.2f} | 0.5 |")
    lines += ["", "What the runs came to, update by update (first round); each side draws its own samples:", "",
              "| side | reward | KL | gradient norm | tokens a response |", "|---|---|---|---|---|"]  # fmt: skip
    for result in {r["side"]: r for r in reversed(results)}.values():
        curves = (", ".join(f"{row[name]:.{digits}f}" for row in result["rows"] if name in row)
                  for name, digits in CURVES)  # fmt: skip
        lines.append(f"| {label(result['side'], NAMES)} | {' | '.join(curves)} |")
    lines += ["", "KL: ours in nats a response (k1), TRL's in nats a token (k3).", "", loads_of(results)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=4, help="the first one warms up")
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=4)
    options = options_beside_trl(parser, PEERS, "merged/instruct", "preferences", "grpo.md")
    if options is None:
        return
    sides = ["ours" + ALLOCATOR, *(side + ALLOCATOR for side in options.peers)]
    with tempfile.TemporaryDirectory() as folder:
        write_prompts(options, Path(folder))
        results = in_rounds(sides, options.rounds, lambda side, turn: run(side, options, Path(folder), turn))
    values(results, {"episodes_per_second": "episodes/s", "peak_mb": "MB"}, "side")
    publish(options.out, report(results, options))


if __name__ == "__main__":
    main()
