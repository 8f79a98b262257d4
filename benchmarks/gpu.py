"""Training on a GPU: SFT (full, LoRA, QLoRA), reward model, DPO, PPO and GRPO, in tokens or episodes a second.

    python -m benchmarks.gpu                      a Llama of 1.1 billion random weights, rows of 2,048 tokens
    python -m benchmarks.gpu --size tiny --device cpu --dtype float32 --steps 3 --batch-rows 2    what its test runs

For a machine with torch, transformers, peft and accelerate; pydantic (with what it needs), pyarrow, psutil and PyYAML
must be there too, and bitsandbytes for QLoRA, whose row says so where it is missing. Each training is a process of its
own (benchmarks/sides/gpu.py): the stage's own function on random weights and rows, in bfloat16.

    MFU = tokens a second x operations a token / peak operations a second          ajuste/learning/plan/cost.py
    operations a token     full 6 P; LoRA, QLoRA, reward, DPO 4 P + 6 a            P of the base, a that learn

The peak is the data sheet's for a GPU that cost.py knows by name, or --peak in TFLOP/s; attention's own products do not
count. PPO and GRPO have no MFU: most of their time is sampling. Peers are not run by this script.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from ajuste.learning.plan.cost import GPUS, operations
from benchmarks.beside import loads_of, publish, result_of
from benchmarks.results import value
from benchmarks.sides.gpu import KINDS, SAMPLED, SHAPES

NAMES = {"full": "SFT, full", "lora": "SFT, LoRA", "qlora": "SFT, QLoRA", "reward": "reward model", "dpo": "DPO",
         "ppo": "PPO", "grpo": "GRPO"}  # fmt: skip
ALL = (*KINDS, "grpo")


def peak_of(device: str) -> float | None:
    """Operations a second of dense bfloat16 products of a GPU by the name that torch gives it; None where unknown."""
    name = device.lower().replace(" ", "")
    for key, gpu in GPUS.items():
        if all(part in name for part in key.split("-")):
            return gpu.peak
    return None


def mfu(found: dict, peak: float | None) -> float | None:
    """The share of the peak that a supervised training reaches; None without a peak, and for PPO and GRPO."""
    if peak is None or found["kind"] in SAMPLED:
        return None
    cost = operations(found["parameters"], found["trained"], found["kind"] == "full")
    return found["units"] / median(found["seconds"]) * cost / peak


def missing(kind: str) -> str:
    """Why a kind cannot be run here; "" if it can."""
    if kind == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    return ""


def report(results: list[dict], left: dict[str, str], options: argparse.Namespace) -> str:
    """The results as Markdown."""
    shape = SHAPES[options.size]
    device = results[0]["device"] if results else "no device"
    peak = options.peak * 1e12 if options.peak else peak_of(device)
    lines = [
        "# Training on a GPU", "",
        f"`python -m benchmarks.gpu --size {options.size} --device {options.device} --steps {options.steps} "
        f"--batch-rows {options.batch_rows}` on {device}:",
        f"a Llama of {shape.layers} layers of width {shape.width}, {options.batch_rows} rows of {shape.tokens} tokens",
        f"a step, {options.dtype}; medians over the steps after warm-up.",
        f"MFU of {peak / 1e12:.0f} TFLOP/s." if peak else "The device's peak is not known: no MFU (--peak).", "",
        "| training | a step or update, s | lowest to highest | a second | MFU | peak GB | phases |",
        "|---|---:|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for kind in ALL:
        found = next((result for result in results if result["kind"] == kind), None)
        if found is None:
            if kind in left:
                lines.append(f"| {NAMES[kind]} | not run: {left[kind]} | | | | | |")
            continue
        seconds, share = found["seconds"], mfu(found, peak)
        unit = "episodes" if kind in SAMPLED else "tokens"
        phases = ", ".join(f"{name} {number:.2f} s" for name, number in found.get("phases", {}).items())
        lines.append(
            f"| {NAMES[kind]} | {median(seconds):.3f} | {min(seconds):.3f} to {max(seconds):.3f} | "
            f"{found['units'] / median(seconds):,.1f} {unit} | {'' if share is None else f'{share:.1%}'} | "
            f"{found['peak_gb']:.1f} | {phases} |"
        )
    return "\n".join([*lines, "", *([loads_of(results)] if results else [])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--size", choices=SHAPES, default="1b")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--steps", type=int, default=8, help="of an optimiser, two warm up; updates of PPO, GRPO")
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64, help="of a sampled response")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device, where its data sheet's is not to be taken")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/measured/gpu.md"))
    options = parser.parse_args()
    shared = ["--size", options.size, "--steps", options.steps, "--batch-rows", options.batch_rows]
    results, left, failed = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        side = [sys.executable, "-m", "benchmarks.sides.gpu"]
        result_of("the model and the rows", [*side, "lay-out", "--work", folder, *shared], options.threads)
        for kind in options.kinds:
            left[kind] = missing(kind)
            if left[kind]:
                continue
            try:
                results.append(result_of(kind, [
                    *side, kind, "--work", folder, *shared, "--device", options.device, "--dtype", options.dtype,
                    "--threads", options.threads, "--new-tokens", options.new_tokens,
                ], options.threads))  # fmt: skip
            except SystemExit as error:  # the others go on
                left[kind] = failed[kind] = str(error).strip().splitlines()[-1][:200]
                print(error, flush=True)
                continue
            print(json.dumps(results[-1]), flush=True)
    for found in results:
        unit = "episodes/s" if found["kind"] in SAMPLED else "tokens/s"
        value(NAMES[found["kind"]], unit, [found["units"] / seconds for seconds in found["seconds"]])
        value(f"{NAMES[found['kind']]}, peak memory", "GB", [found["peak_gb"]])
    publish(options.out, report(results, left, options))
    if failed:
        raise SystemExit(f"error: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
