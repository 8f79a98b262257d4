"""`ajuste plan` against what trainings really take, on a CPU: six ways to learn at three sizes each.

    python -m benchmarks.plan [--kinds lora ppo] [--sizes small] [--threads 1] [--out docs/measured/plan.md]

Each training is a process of its own (benchmarks/sides/plan.py): random weights, random rows, two optimiser steps
(PPO: two updates). Measured is the largest resident memory of the training, loading included, above what it was before;
the allocator is glibc's. The plan is made from params.yaml and the same folders, as `ajuste plan STAGE` makes it.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

from benchmarks.beside import loads_of, publish, result_of
from benchmarks.results import values
from benchmarks.sides.plan import KINDS, SIZES

WANTED = 0.2  # of the measured peak
NAMES = {"full": "SFT, full, float32", "lora": "SFT, LoRA", "qlora": "SFT, QLoRA", "reward": "reward model",
         "dpo": "DPO", "ppo": "PPO"}  # fmt: skip
MEASURED_SIZES = tuple(SIZES)[1:]


def error(found: dict) -> float:
    """planned / measured - 1."""
    return found["planned_mb"] / found["measured_mb"] - 1


def report(results: list[dict], options: argparse.Namespace) -> str:
    """The results as Markdown."""
    chosen = {name: s for name, s in SIZES.items() if name in options.sizes}
    sizes = ";\n".join(
        f"{name}: {s.layers} layers of width {s.width}, {s.vocabulary:,} tokens, rows of up to {s.tokens}"
        for name, s in chosen.items()
    )
    inside = [found for found in results if abs(error(found)) <= WANTED]
    lines = [
        "# The plan against the measured peak",
        "",
        f"`python -m benchmarks.plan --threads {options.threads}`, {platform.machine()}, CPU. {sizes}.",
        "Eight rows a step, PPO 16 episodes; products in bfloat16 but for full fine-tuning. The peak is the training's",
        "resident memory, loading included, above what the process had before; glibc's own allocator.",
        "",
        "| training | size | planned MB | measured MB | error | largest phase |",
        "|---|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for found in results:
        name, numbers = NAMES[found["kind"]], f"{found['planned_mb']:.0f} | {found['measured_mb']:.0f}"
        lines.append(f"| {name} | {found['size']} | {numbers} | {error(found):+.0%} | {found['phase']} |")
    worst = max(results, key=lambda found: abs(error(found)))
    process = [found["process_mb"] for found in results]
    lines += [
        "",
        f"{len(inside)} of {len(results)} within {WANTED:.0%}; the worst is {NAMES[worst['kind']]}, {worst['size']}, "
        f"{error(worst):+.0%}.",
        f"Before its training a process had {min(process):.0f} to {max(process):.0f} MB: Python, torch, transformers, "
        "PEFT, a tiny model.",
    ]
    done = {(found["kind"], found["size"]) for found in results}
    left = [f"{NAMES[kind]} {size}" for kind in KINDS for size in MEASURED_SIZES if (kind, size) not in done]
    lines += [f"Not measured: {', '.join(left)}."] if left else []
    lines += [
        "",
        "One row of each plan is not counted but fitted, two numbers for all of them: what malloc leaves between",
        "blocks (`BETWEEN` in `ajuste/learning/plan/training.py`). They were fitted to full fine-tuning and LoRA, so",
        "their errors say how well one number serves three sizes; those of the other trainings are a check of it.",
        "",
        loads_of(results),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", choices=MEASURED_SIZES, default=list(MEASURED_SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/measured/plan.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        command = [
            sys.executable, "-m", "benchmarks.sides.plan", "--kinds", *options.kinds, "--sizes", *options.sizes,
            "--work", work, "--threads", options.threads,
        ]  # fmt: skip
        results = result_of("the trainings", command, options.threads)
    print(json.dumps(results))
    values(results, {"planned_mb": "MB", "measured_mb": "MB"}, "kind", "size")
    publish(options.out, report(results, options))


if __name__ == "__main__":
    main()
