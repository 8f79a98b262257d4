"""A reward model with LoRA beside TRL's RewardTrainer: same weights, pairs, dtype and threads, in turns.

    python -m venv .trl && .trl/bin/pip install trl==1.16.0 peft==0.21.2 torch==2.13.0 transformers==5.23.0 psutil
    python -m benchmarks.reward --peer-python .trl/bin/python [--rounds 3] [--steps 12] [--out docs/measured/reward.md]

Reads the default run's artifacts/merged/instruct and artifacts/encoded/preferences. Each run is a process of its own
(benchmarks/sides/reward.py): ours is stage `reward`, as DVC starts it, less the evaluation; TRL is run at its defaults,
plain in bfloat16 and grouped by length, the last two also with our allocator settings (ajuste/core/allocator.py).

First the two sides get the same reward model, whose B is not zero, and the same batch in float64, where rounding hides
nothing: their losses and all gradients must be equal to 1e-6; float32 is reported. Then pairs a second, over the
seconds of all steps after two of warm-up; pairs a second of processor time stand beside them, which other work on the
machine disturbs less.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import beside
from benchmarks.beside import ALLOCATOR, in_rounds, label, loads_of, options_beside_trl, publish, run_side
from benchmarks.results import values

TOLERANCE = 1e-6
FIGURES = ("pairs_per_second", "pairs_per_cpu_second", "startup_s", "peak_mb")
PEERS = ("default", "plain", "group")
NAMES = {
    "ours": "Ajuste",
    "default": "TRL, its defaults",
    "plain": "TRL, bfloat16",
    "group": "TRL, bfloat16, group by length",
}


def write_pairs(encoded: Path, base: Path, work: Path, number: int) -> int:
    """The first `number` pairs by row id at work/pairs, a reward model at work/adapter; returns the padding token's id.

    The adapter's A and w are drawn as stage `reward` draws them; B too, or half of the gradients would be zero.
    """
    import torch

    from ajuste.models import decoder, reward

    beside.write_pairs(encoded, work, number)
    torch.manual_seed(0)
    model = reward.build(base, reward.Settings())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    tokenizer = decoder.load_base(base)[1]
    reward.save(model, tokenizer, work / "adapter", {"base": decoder.identity_of(base)})
    return reward.padding_id(tokenizer)


def run(side: str, options: argparse.Namespace, work: Path, *more: object) -> dict:
    """One run of benchmarks/sides/reward.py. Raises SystemExit with its last lines when it fails."""
    return run_side("benchmarks.sides.reward", side, options, [
        "--work", work, "--base", options.base, "--batch-pairs", options.batch_pairs, "--threads", options.threads,
        "--pad-id", options.pad_id, *more,
    ])  # fmt: skip


def check(options: argparse.Namespace, work: Path, dtype: str) -> dict:
    """Losses of both sides on one batch, and the largest difference of a gradient, absolute and beside the largest of
    its tensor."""
    from safetensors.torch import load_file

    sides = ("ours", "plain")
    for side in sides:
        run(side, options, work, "--check", "--dtype", dtype)
    left, right = (load_file(work / f"{side}.safetensors") for side in sides)
    if left.keys() != right.keys():
        raise SystemExit(f"other weights learn: {sorted(left.keys() ^ right.keys())[:4]}")
    losses = left.pop("loss").item(), right.pop("loss").item()
    absolute = max((left[name] - right[name]).abs().max().item() for name in left)
    relative = max(((left[name] - right[name]).abs().max() / right[name].abs().max()).item() for name in left)
    found = {"dtype": dtype, "losses": losses, "tensors": len(left), "absolute": absolute, "relative": relative}
    print(json.dumps(found), flush=True)
    return found


def report(results: list[dict], checked: list[dict], options: argparse.Namespace) -> str:
    """The results as Markdown: medians over the rounds, and the ratios that matter."""
    from ajuste.models.decoder import identity_of

    base = identity_of(options.base)["id"]
    lines = [
        "# The reward model beside TRL",
        "",
        f"`python -m benchmarks.reward --rounds {options.rounds} --steps {options.steps}`: {base}",
        f"with LoRA (r = 8, every linear layer), batches of {options.batch_pairs} pairs, bfloat16, {options.threads}",
        f"threads, {platform.machine()}. Pairs a second over the {options.steps - 2} steps after warm-up; medians, in",
        "turns, each run a process of its own. `+ allocator`: with the settings of ajuste/core/allocator.py.",
        "",
        f"The same batch of {options.check_pairs} pairs, loss here and in TRL, and over {checked[0]['tensors']}",
        "tensors of gradients the largest difference, absolute and beside the largest of its tensor:",
        "",
        "| arithmetic | loss here | loss in TRL | gradients | of the largest |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {row['dtype']} | {row['losses'][0]:.9f} | {row['losses'][1]:.9f} | {row['absolute']:.1e} | "
            f"{row['relative']:.1e} |"
            for row in checked
        ),
        "",
        "| side | pairs / s | each round | / CPU s | start-up s | peak MB | loss, last step |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    speed: dict[str, tuple[float, float]] = {}
    for side in dict.fromkeys(result["side"] for result in results):
        mine = [result for result in results if result["side"] == side]
        wall, cpu, startup, peak = (median(r[key] for r in mine) for key in FIGURES)
        speed[side] = wall, cpu
        each = ", ".join(f"{r['pairs_per_second']:.2f}" for r in mine)
        lines.append(
            f"| {label(side, NAMES)} | {wall:.2f} | {each} | {cpu:.2f} | {startup:.1f} | {peak:.0f} | "
            f"{mine[0]['last_loss']:.3f} |"
        )
    best = max((side for side in speed if not side.startswith(("ours", "default"))), key=lambda side: speed[side][0])
    lines += ["", "| Ajuste beside | ratio | by CPU time | wanted |", "|---|---:|---:|---:|"]
    for side, peer, wanted in (("default", NAMES["default"], 1.3), (best, f"the best of TRL, {best}", 1.0)):
        wall, cpu = (a / b for a, b in zip(speed["ours" + ALLOCATOR], speed[side], strict=True))
        lines.append(f"| {peer} | {wall:.2f} | {cpu:.2f} | {wanted} |")
    lines += ["", loads_of(results)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-pairs", type=int, default=8)
    parser.add_argument("--check-pairs", type=int, default=4)
    options = options_beside_trl(parser, PEERS, "merged/instruct", "preferences", "reward.md")
    if options is None:
        return
    sides = ["ours" + ALLOCATOR, *options.peers, *(side + ALLOCATOR for side in options.peers if side != "default")]
    with tempfile.TemporaryDirectory() as folder:
        few, work = Path(folder) / "few", Path(folder) / "all"
        few.mkdir()
        work.mkdir()
        write_pairs(options.encoded, options.base, few, options.check_pairs)
        options.pad_id = write_pairs(options.encoded, options.base, work, options.steps * options.batch_pairs)
        checked = [check(options, few, dtype) for dtype in ("float64", "float32")]
        ours, theirs = checked[0]["losses"]
        if not (abs(ours - theirs) <= TOLERANCE and checked[0]["absolute"] <= TOLERANCE):
            raise SystemExit(f"the sides differ by more than {TOLERANCE}: {checked[0]}")
        results = in_rounds(sides, options.rounds, lambda side, turn: run(side, options, work, "--seed", turn))
    values(results, {"pairs_per_second": "pairs/s", "peak_mb": "MB"}, "side")
    publish(options.out, report(results, checked, options))


if __name__ == "__main__":
    main()
