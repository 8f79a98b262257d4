"""One training of benchmarks/gpu.py in a process of its own; prints one line `RESULT {json}`.

    python -m benchmarks.sides.gpu lay-out --work FOLDER --size tiny --steps 4 --batch-rows 2
    python -m benchmarks.sides.gpu KIND --work FOLDER --size tiny --steps 4 --batch-rows 2 --device cpu [...]

`lay-out` makes a random Llama and rows of equal length as a run lays them out (benchmarks/sides/plan.py); a KIND is the
stage's own function on them, watched step by step. Seconds are those between the ends of two steps, after WARM_UP: the
loops read each step's loss, so by then the device has done its work.
"""

import argparse
import json
import math
import os
import resource
from argparse import Namespace
from contextlib import chdir
from pathlib import Path

from benchmarks.sides import grpo, plan
from benchmarks.sides.plan import KINDS, RUN, SIZES, Size
from benchmarks.sides.ppo import Watch as Updates
from benchmarks.sides.ppo import laps
from benchmarks.sides.sft import WARM_UP, Watch

SHAPES = {
    "1b": Size(16, 2048, 8192, 32768, 2048, 64),  # 1.1 billion parameters
    "135m": Size(30, 576, 1536, 49152, 1024, 64),
    "tiny": SIZES["tiny"],
}
PAIRS = ("reward", "dpo")  # a row is two responses to a prompt
SAMPLED = ("ppo", "grpo")


def base_parameters(base: Path) -> int:
    """Of the decoder at `base`, counted in its file."""
    from safetensors import safe_open

    with safe_open(base / "model.safetensors", "pt") as file:
        names = list(file.keys())
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def supervised(kind: str, options: Namespace, params: dict) -> dict:
    """Full fine-tuning, LoRA, QLoRA, reward or DPO: tokens a second over the steps after the warm-up."""
    from tasks.supervised import loop

    watch, seen, train = Watch(), {}, loop.train

    def counting(model, *args, **kwargs):
        seen["trained"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return train(model, *args, **kwargs)

    tokens = options.batch_rows * SHAPES[options.size].tokens * (2 if kind in PAIRS else 1)
    watch.follow_loop(tokens)
    loop.train = counting
    checkpoints = Path("checkpoints") / kind
    checkpoints.mkdir(parents=True)
    stage = KINDS[kind][0]
    if stage == "dpo":
        plan.refer(params)
    start_memory(options.device)
    try:
        RUN[stage](params, checkpoints)
    except plan.Trained:
        pass
    ends = [clock for clock, _ in watch.ends]
    steps = len(ends) - 1
    after = min(WARM_UP, steps - 1)
    seconds = [last - first for first, last in zip(ends[after:], ends[after + 1 :], strict=False)]
    return {"seconds": seconds, "units": tokens, "trained": seen["trained"]}


def sampled(kind: str, options: Namespace, params: dict) -> dict:
    """PPO or GRPO: episodes a second over the updates after the first; the score is the share of even tokens."""
    watch = Updates()
    start_memory(options.device)
    if kind == "ppo":
        params["ppo"] |= {"updates": options.steps, "radar_every": options.steps, "epochs": 4,
                          "micro_rows": options.batch_rows, "max_new_tokens": options.new_tokens}  # fmt: skip
        checkpoints = Path("checkpoints") / kind
        checkpoints.mkdir(parents=True)
        plan.ppo(params, checkpoints, laps(watch))
    else:
        from ajuste.learning.text import chat
        from ajuste.models.folder import load_tokenizer
        from tasks.rl.policy import read_prompts

        base, encoded = Path("artifacts/merged/instruct"), Path("artifacts/encoded/preferences")
        given = {"prompts": read_prompts(encoded, "train", 4096)["prompt_ids"],
                 "stop_ids": chat.end_of_turn(load_tokenizer(base))}  # fmt: skip
        asked = Namespace(**vars(options), base=base, group=min(8, options.batch_rows), updates=options.steps, epochs=4,
                          lr=1e-4, seed=0)  # fmt: skip
        grpo.ours(asked, given, watch)
    timed = watch.rows[1:] or watch.rows
    return {"seconds": [row["seconds"] for row in timed], "units": options.batch_rows,
            "phases": {name: sum(row[f"{name}_s"] for row in timed) / len(timed)
                       for name in ("rollout", "score", "learn")}}  # fmt: skip


def start_memory(device: str) -> None:
    """Count the device's peak from here."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str) -> float:
    """The largest memory of tensors on the GPU; on a CPU the largest resident memory of the process."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def params_of(kind: str, options: Namespace) -> dict:
    """params.yaml with what the kind and the options change."""
    source = "ppo" if kind == "grpo" else kind
    params = plan.params_of(source, options.threads)
    params["compute"] |= {"device": options.device}
    params[KINDS[source][0]] |= {"batch_rows": options.batch_rows, "dtype": options.dtype}
    if kind == "dpo":  # its stage takes the reference's
        params["dpo"].pop("dtype")
        params["reference"] |= {"dtype": options.dtype}
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["lay-out", *KINDS, "grpo"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", choices=SHAPES, required=True)
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps; updates of PPO and GRPO")
    parser.add_argument("--batch-rows", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, default=8, help="of a sampled response")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.kind == "lay-out":
        plan.lay_out(options.work, SHAPES[options.size], 0, options.steps * options.batch_rows, equal=True)
        print('RESULT {"laid out": true}')
        return
    import torch

    torch.set_num_threads(options.threads)
    params = params_of(options.kind, options)
    with chdir(options.work):
        found = (sampled if options.kind in SAMPLED else supervised)(options.kind, options, params)
        found["parameters"] = base_parameters(Path("artifacts/base/decoder"))
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print("RESULT " + json.dumps({"kind": options.kind, **found, "peak_gb": peak_gb(options.device), "device": name,
                                  "load": os.getloadavg()[0]}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
