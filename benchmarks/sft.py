"""Instruction fine-tuning with LoRA beside TRL's SFTTrainer: same weights, token ids, dtype and threads, in turns.

    python -m venv .trl && .trl/bin/pip install trl==1.16.0 peft==0.21.2 torch==2.13.0 transformers==5.23.0 psutil
    python -m benchmarks.sft --peer-python .trl/bin/python [--rounds 3] [--steps 10] [--out docs/measured/sft.md]

Reads the default run's artifacts/base/decoder and artifacts/encoded/instructions. Each run is a process of its own
(benchmarks/sides/sft.py): ours is stage `instruct`, as DVC starts it, less the evaluation; TRL is run at its defaults,
plain in bfloat16, grouped by length and packed, each also with our allocator settings (ajuste/core/allocator.py).
First every side takes one step on the same eight rows in float32, and the losses must be equal to 1e-5.

Trained tokens a second: tokens with a label, over the seconds of all steps after two of warm-up. Two sets of rows:
ragged, as they are, and equal, each row cut to the same number of tokens, where padding costs nobody anything. Tokens
a second of processor time stand beside those of the clock: other work on the machine disturbs them less.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.beside import ALLOCATOR, in_turn, label, loads_of, options_beside_trl, publish, run_side
from benchmarks.results import values

PEERS = ("default", "plain", "group", "packing")
TOLERANCE = 1e-5
FIGURES = ("tokens_per_second", "tokens_per_cpu_second", "startup_s", "peak_mb")
NAMES = {
    "ours": "Ajuste",
    "default": "TRL, its defaults",
    "plain": "TRL, bfloat16",
    "group": "TRL, bfloat16, group by length",
    "packing": "TRL, bfloat16, packing",
}


def write_rows(encoded: Path, work: Path, steps: int, batch_rows: int, max_tokens: int, equal_tokens: int) -> None:
    """Folders `ragged`, `equal` and `first` (one batch) under `work`, in the layout of artifacts/encoded/instructions.

    ragged: the first rows, by row id, of at most max_tokens. equal: the last equal_tokens of rows that have them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(encoded / "train.parquet")
    order = sorted(range(table.num_rows), key=table["row_id"].to_pylist().__getitem__)
    rows = table.take(order).to_pylist()
    fitting = [row for row in rows if len(row["input_ids"]) <= max_tokens]
    long = [row for row in rows if len(row["input_ids"]) >= equal_tokens]
    cut = [{**row, **{key: row[key][-equal_tokens:] for key in ("input_ids", "labels")}} for row in long]
    cut = [row for row in cut if any(label != -100 for label in row["labels"][1:])]
    number = steps * batch_rows
    if min(len(fitting), len(cut)) < number:
        raise SystemExit(
            f"{encoded} has {min(len(fitting), len(cut))} rows that fit, {number} are needed: lower --steps"
        )
    sets = {"ragged": fitting[:number], "equal": cut[:number], "first": fitting[:batch_rows]}
    for name, chosen in sets.items():
        (work / name).mkdir()
        pq.write_table(pa.Table.from_pylist(chosen, schema=table.schema), work / name / "train.parquet")
        shortest = min(chosen, key=lambda row: len(row["input_ids"]))
        pq.write_table(pa.Table.from_pylist([shortest], schema=table.schema), work / name / "validation.parquet")
        (work / name / "encoding.json").write_bytes((encoded / "encoding.json").read_bytes())


def run(side: str, rows: str, options: argparse.Namespace, work: Path, seed: int, dtype: str = "bfloat16") -> dict:
    """One run of benchmarks/sides/sft.py. Raises SystemExit with its last lines when it fails."""
    return run_side("benchmarks.sides.sft", side, options, [
        "--work", work, "--base", options.base, "--rows", rows, "--dtype", dtype, "--seed", seed,
        "--batch-rows", options.batch_rows, "--max-tokens", options.max_tokens, "--threads", options.threads,
    ])  # fmt: skip


def check_first_step(options: argparse.Namespace, work: Path) -> dict[str, tuple[float, float]]:
    """The first loss of every side on the same batch: (float32, bfloat16). Raises SystemExit if float32 differs."""
    losses = {
        side: tuple(run(side, "first", options, work, 0, dtype)["first_loss"] for dtype in ("float32", "bfloat16"))
        for side in ("ours", *options.peers)
    }
    expected = losses["ours"][0]
    for side, (exact, half) in losses.items():
        print(f"first step, {NAMES[side]}: loss {exact:.7f} in float32, {half:.5f} in bfloat16", flush=True)
        if abs(exact / expected - 1) > TOLERANCE:
            raise SystemExit(f"{side} starts at another loss: {exact} and not {expected}")
    return losses


def report(results: list[dict], losses: dict, options: argparse.Namespace) -> str:
    """The results as Markdown: medians over the rounds, and the ratios that matter."""
    base = json.loads((options.base / "base.json").read_text(encoding="utf-8"))["id"]
    lines = [
        "# Instruction fine-tuning beside TRL",
        "",
        f"`python -m benchmarks.sft --rounds {options.rounds} --steps {options.steps}`: {base} with",
        f"LoRA (r = 8, every linear layer), batches of {options.batch_rows} rows, bfloat16, {options.threads} threads,",
        f"{platform.machine()}. Trained tokens a second over the {options.steps - 2} steps after warm-up; medians, in",
        "turns, each run a process of its own. `+ allocator`: with the settings of ajuste/core/allocator.py.",
        "",
        "First step on the same eight rows, loss in float32 (equal to 1e-5) and bfloat16:",
        "; ".join(f"{NAMES[side]} {exact:.6f} and {half:.4f}" for side, (exact, half) in losses.items()) + ".",
        "",
        "| rows | side | trained tokens / s | each round | / CPU s | start-up s | peak MB | loss, last step |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    speed: dict[tuple[str, str], tuple[float, float]] = {}
    for rows in dict.fromkeys(result["rows"] for result in results):
        for side in dict.fromkeys(result["side"] for result in results):
            mine = [result for result in results if (result["rows"], result["side"]) == (rows, side)]
            if not mine:
                continue
            wall, cpu, startup, peak = (median(r[key] for r in mine) for key in FIGURES)
            speed[rows, side] = wall, cpu
            each = ", ".join(f"{r['tokens_per_second']:.0f}" for r in mine)
            lines.append(
                f"| {rows} | {label(side, NAMES)} | {wall:.0f} | {each} | {cpu:.0f} | {startup:.1f} | {peak:.0f} | "
                f"{mine[0]['last_loss']:.3f} |"
            )
    lines += ["", "| Ajuste beside | rows | ratio | by CPU time | wanted |", "|---|---|---:|---:|---:|"]
    for rows, wanted_default, wanted_best in (("ragged", "2.0", "1.25"), ("equal", "", "1.0")):
        peers = [(side, wanted_best) for side in (name + ALLOCATOR for name in options.peers) if (rows, side) in speed]
        peers = sorted(peers, key=lambda peer: speed[rows, peer[0]][0])[-1:]  # the best of them
        if (rows, "default") in speed:
            peers.insert(0, ("default", wanted_default))
        for side, wanted in peers:
            wall, cpu = (a / b for a, b in zip(speed[rows, "ours" + ALLOCATOR], speed[rows, side], strict=True))
            peer = NAMES["default"] if side == "default" else f"the best of TRL{ALLOCATOR}, {side.split()[0]}"
            lines.append(f"| {peer} | {rows} | {wall:.2f} | {cpu:.2f} | {wanted} |")
    lines += ["", loads_of(results)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=["ragged", "equal"], default=["ragged", "equal"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--equal-tokens", type=int, default=128)
    options = options_beside_trl(parser, PEERS, "base/decoder", "instructions", "sft.md")
    if options is None:
        return
    same = [side + ALLOCATOR for side in options.peers]
    sides = {"ragged": ["ours" + ALLOCATOR, "ours", *options.peers, *same], "equal": ["ours" + ALLOCATOR, *same]}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_rows(options.encoded, work, options.steps, options.batch_rows, options.max_tokens, options.equal_tokens)
        losses = check_first_step(options, work)
        for turn in range(options.rounds):
            for rows in options.sets:
                for side in in_turn(sides[rows], turn):
                    results.append(run(side, rows, options, work, seed=turn))
                    print(json.dumps(results[-1]), flush=True)
    values(results, {"tokens_per_second": "trained tokens/s", "peak_mb": "MB"}, "rows", "side")
    publish(options.out, report(results, losses, options))


if __name__ == "__main__":
    main()
