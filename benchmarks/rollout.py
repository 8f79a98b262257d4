"""A rollout beside transformers' `generate`: the same LoRA policy, prompts, dtype, threads and allocator, in turns.

    python -m benchmarks.rollout [--rounds 3] [--batches 16 32] [--out docs/measured/rollout.md]

Reads the default run's artifacts/merged/instruct, artifacts/encoded/preferences (the prompts of PPO, which share their
beginning) and artifacts/encoded/instructions (prompts of very unequal length, which do not). Each run is a process of
its own (benchmarks/sides/rollout.py). Two ways of answering:

    greedy     until the end of turn or --greedy-tokens; in float32 the tokens of both sides must be equal, or it fails
    sampled    at temperature 0.7, --sampled-tokens for every row: the work of a PPO rollout

New tokens a second, padding not counted; medians over the rounds. Tokens a second of processor time stand beside those
of the clock: other work on the machine disturbs them less.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.beside import in_turn, publish, result_of
from benchmarks.results import values

SIDES = ("ours", "generate")
WANTED = 1.3


def read_prompts(options: argparse.Namespace) -> tuple[dict[str, list[list[int]]], int, int]:
    """{set: prompts}, the end of turn's id and one to pad with. Raises SystemExit when a set has too few."""
    import pyarrow.parquet as pq

    from ajuste.learning.text import chat
    from ajuste.models.folder import load_tokenizer
    from ajuste.models.reward import padding_id

    number = max(options.batches)
    table = pq.read_table(options.preferences / "prompts_test.parquet", columns=["prompt_ids"])
    sets = {"reviews": table["prompt_ids"].to_pylist()}
    rows = pq.read_table(options.instructions / "test.parquet", columns=["input_ids", "prompt_tokens"]).to_pylist()
    prompts = [row["input_ids"][: row["prompt_tokens"]] for row in rows]
    sets["instructions"] = [prompt for prompt in prompts if len(prompt) <= options.max_prompt]
    if min(map(len, sets.values())) < number:
        raise SystemExit(f"{number} prompts of each set are needed: lower --batches or raise --max-prompt")
    tokenizer = load_tokenizer(options.base)
    return {name: found[:number] for name, found in sets.items()}, chat.end_of_turn(tokenizer)[0], padding_id(tokenizer)


def run(side: str, dtype: str, prompts: Path, stop_id: int, pad_id: int, options: argparse.Namespace) -> dict:
    """One run of benchmarks/sides/rollout.py. Raises SystemExit with its last lines when it fails."""
    command = [
        sys.executable, "-m", "benchmarks.sides.rollout", side, "--base", options.base, "--prompts", prompts,
        "--dtype", dtype, "--batches", *options.batches, "--greedy-tokens", options.greedy_tokens,
        "--sampled-tokens", options.sampled_tokens, "--stop-id", stop_id, "--pad-id", pad_id,
        "--threads", options.threads,
    ]  # fmt: skip
    return result_of(side, command, options.threads)


def equal_tokens(runs: list[dict], dtype: str) -> tuple[int, int]:
    """(rows whose greedy tokens are the same on both sides, rows), each set and batch once."""
    answers = []
    for side in SIDES:
        first = next(run for run in runs if (run["side"], run["dtype"]) == (side, dtype))
        answers.append([row for result in first["results"] if result["greedy"] for row in result["responses"]])
    pairs = list(zip(*answers, strict=True))
    return sum(one == other for one, other in pairs), len(pairs)


def report(runs: list[dict], prompts: dict, options: argparse.Namespace) -> str:
    """The results as Markdown."""
    lengths = {name: [len(row) for row in rows] for name, rows in prompts.items()}
    lines = [
        "# Rollout beside transformers' generate",
        "",
        f"`python -m benchmarks.rollout --rounds {options.rounds}`: the base of the default run with a LoRA policy",
        f"(r = 8, every linear layer, not merged), {options.threads} threads, {platform.machine()}, the same allocator",
        "settings on both sides. New tokens a second, padding not counted; medians over the rounds, in turns, each",
        "run a process of its own. "
        + "; ".join(f"{name}: prompts of {min(some)} to {max(some)} tokens" for name, some in lengths.items())
        + ".",
        f"Greedy: to the end of turn or {options.greedy_tokens} tokens. Sampled: {options.sampled_tokens} a row.",
        "",
    ]
    for dtype in options.dtypes:
        equal, rows = equal_tokens(runs, dtype)
        lines.append(f"Greedy tokens in {dtype}: {equal} of {rows} rows equal.")
    lines += [
        "",
        "| dtype | prompts | rows | how | Ajuste, tokens / s | generate, tokens / s | ratio | by CPU time | wanted |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for dtype in options.dtypes:
        for name in prompts:
            for batch in options.batches:
                for greedy in (True, False):
                    speed = {}
                    for side in SIDES:
                        mine = [
                            result for run in runs if (run["side"], run["dtype"]) == (side, dtype)
                            for result in run["results"]
                            if (result["set"], result["batch"], result["greedy"]) == (name, batch, greedy)
                        ]  # fmt: skip
                        speed[side] = [median(r["tokens"] / r[key] for r in mine) for key in ("seconds", "cpu_seconds")]
                    wall, cpu = (a / b for a, b in zip(speed["ours"], speed["generate"], strict=True))
                    how = "greedy" if greedy else "sampled"
                    lines.append(
                        f"| {dtype} | {name} | {batch} | {how} | {speed['ours'][0]:.0f} | {speed['generate'][0]:.0f} | "
                        f"{wall:.2f} | {cpu:.2f} | {WANTED} |"
                    )
    lines.append("")
    for dtype in options.dtypes:
        peaks = [
            f"{'Ajuste' if side == 'ours' else side} "
            f"{median(run['peak_mb'] for run in runs if (run['side'], run['dtype']) == (side, dtype)):.0f} MB"
            for side in SIDES
        ]
        lines.append(f"Peak memory above the loaded model, {dtype}: {', '.join(peaks)}.")
    loads = [run["load"] for run in runs]
    lines.append(f"Load average of the machine at the ends of the runs: {min(loads):.1f} to {max(loads):.1f}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--greedy-tokens", type=int, default=32)
    parser.add_argument("--sampled-tokens", type=int, default=24)
    parser.add_argument("--max-prompt", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", type=Path, default=Path("artifacts/merged/instruct"))
    parser.add_argument("--preferences", type=Path, default=Path("artifacts/encoded/preferences"))
    parser.add_argument("--instructions", type=Path, default=Path("artifacts/encoded/instructions"))
    parser.add_argument("--out", type=Path, default=Path("docs/measured/rollout.md"))
    options = parser.parse_args()
    options.base = options.base.resolve()
    prompts, stop_id, pad_id = read_prompts(options)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.json"
        path.write_text(json.dumps(prompts), encoding="utf-8")
        for turn in range(options.rounds):
            for dtype in options.dtypes:
                for side in in_turn(SIDES, turn):
                    runs.append(run(side, dtype, path, stop_id, pad_id, options))
                    for result in runs[-1]["results"]:
                        print(json.dumps({**runs[-1], **result, "results": None, "responses": None}), flush=True)
                if dtype == "float32" and turn == 0:
                    equal, rows = equal_tokens(runs, dtype)
                    if equal != rows:
                        raise SystemExit(f"greedy tokens differ in {rows - equal} of {rows} rows in float32")
    rates = [{**run, **found, "how": "greedy" if found["greedy"] else "sampled",
              "rate": found["tokens"] / found["seconds"]} for run in runs for found in run["results"]]  # fmt: skip
    values(rates, {"rate": "tokens/s"}, "side", "dtype", "set", "batch", "how")
    publish(options.out, report(runs, prompts, options))


if __name__ == "__main__":
    main()
