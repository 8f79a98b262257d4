"""DPO with LoRA beside TRL's DPOTrainer: same weights, pairs, dtype and threads, in turns.

    python -m venv .trl && .trl/bin/pip install trl==1.16.0 peft==0.21.2 torch==2.13.0 transformers==5.23.0 psutil
    python -m benchmarks.dpo --peer-python .trl/bin/python [--rounds 3] [--steps 12] [--out docs/measured/dpo.md]

Reads the default run's artifacts/merged/{instruct, gold} and artifacts/encoded/preferences. Each run is a process of
its own (benchmarks/sides/dpo.py): ours is the stages `reference` and `dpo`, as DVC starts them; TRL is run at its
defaults, plain in bfloat16 with the reference asked in each step, and with its log-probabilities computed before.

That both sides compute the same loss and gradients is what tests/invariants/test_trl_dpo.py says. Measured are pairs a
second over the seconds of all steps after two of warm-up, the reference's pairs a second where it is asked before
(TRL's with the making of its trainer), and pairs a second of processor time, which other work disturbs less.
"""

import argparse
import platform
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.beside import (
    ALLOCATOR,
    in_rounds,
    label,
    loads_of,
    options_beside_trl,
    publish,
    run_side,
    write_pairs,
)
from benchmarks.results import values

FIGURES = ("pairs_per_second", "pairs_per_cpu_second", "startup_s", "peak_mb")
PEERS = ("default", "plain", "precomputed")
NAMES = {
    "ours": "Ajuste",
    "default": "TRL, its defaults",
    "plain": "TRL, bfloat16",
    "precomputed": "TRL, bfloat16, reference before",
}


def run(side: str, options: argparse.Namespace, work: Path, seed: int) -> dict:
    """One run of benchmarks/sides/dpo.py. Raises SystemExit with its last lines when it fails."""
    return run_side("benchmarks.sides.dpo", side, options, [
        "--work", work, "--base", options.base, "--gold", options.gold.resolve(), "--batch-pairs", options.batch_pairs,
        "--threads", options.threads, "--seed", seed,
    ])  # fmt: skip


def report(results: list[dict], options: argparse.Namespace) -> str:
    """The results as Markdown: medians over the rounds, and the ratios that matter."""
    from ajuste.models.decoder import identity_of

    lines = [
        "# DPO beside TRL",
        "",
        f"`python -m benchmarks.dpo --rounds {options.rounds} --steps {options.steps}`:",
        f"{identity_of(options.base)['id']} with LoRA (r = 8, every linear layer), batches of {options.batch_pairs}",
        f"pairs, bfloat16, {options.threads}",
        f"threads, {platform.machine()}. Pairs a second over the {options.steps - 2} steps after warm-up; medians, in",
        "turns, each run a process of its own. `+ allocator`: with the settings of ajuste/core/allocator.py.",
        "Reference: pairs a second of its log-probabilities, where they are computed before.",
        "",
        "| side | pairs / s | each round | / CPU s | reference, pairs / s | start-up s | peak MB | loss, last step |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    speed: dict[str, tuple[float, float]] = {}
    for side in dict.fromkeys(result["side"] for result in results):
        mine = [result for result in results if result["side"] == side]
        wall, cpu, startup, peak = (median(r[key] for r in mine) for key in FIGURES)
        speed[side] = wall, cpu
        each = ", ".join(f"{r['pairs_per_second']:.2f}" for r in mine)
        asked = "" if mine[0]["reference"] is None else f"{median(r['reference'] for r in mine):.1f}"
        lines.append(
            f"| {label(side, NAMES)} | {wall:.2f} | {each} | {cpu:.2f} | {asked} | {startup:.1f} | {peak:.0f} | "
            f"{mine[0]['last_loss']:.3f} |"
        )
    lines += ["", "| Ajuste beside | ratio | by CPU time | wanted |", "|---|---:|---:|---:|"]
    best = max((side for side in speed if not side.startswith(("ours", "default"))), key=lambda side: speed[side][0])
    for side, wanted in (("default", 1.3), (best, 1.0)):
        wall, cpu = (a / b for a, b in zip(speed["ours" + ALLOCATOR], speed[side], strict=True))
        lines.append(f"| {label(side, NAMES)}{', the best of TRL' if side == best else ''} | {wall:.2f} | {cpu:.2f} | "
                     f"{wanted} |")  # fmt: skip
    lines += ["", loads_of(results)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-pairs", type=int, default=8)
    parser.add_argument("--gold", type=Path, default=Path("artifacts/merged/gold"))
    options = options_beside_trl(parser, PEERS, "merged/instruct", "preferences", "dpo.md")
    if options is None:
        return
    sides = ["ours" + ALLOCATOR, *options.peers, *(side + ALLOCATOR for side in options.peers if side != "default")]
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(options.encoded, Path(folder), options.steps * options.batch_pairs)
        results = in_rounds(sides, options.rounds, lambda side, turn: run(side, options, Path(folder), turn))
    values(results, {"pairs_per_second": "pairs/s", "peak_mb": "MB"}, "side")
    publish(options.out, report(results, options))


if __name__ == "__main__":
    main()
