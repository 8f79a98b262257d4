"""Rollouts of benchmarks/rollout.py, ours or transformers', in a process of its own; prints one line `RESULT {json}`.

    python -m benchmarks.sides.rollout ours|generate --base FOLDER --prompts FILE.json --dtype bfloat16 [...]

Both sides have the same LoRA policy on the same base: A is drawn and B is not zero. `generate` is transformers' own on
PEFT's model, with a cache, left padding, top_k = 0 and top_p = 1; `ours` is ajuste.learning.rl.rollout.sample.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path


def policy(base: Path, dtype: str):
    """OneBase with a policy that is not its base any more; the same numbers on both sides."""
    import torch

    from ajuste.models.one_base import OneBase, Settings

    torch.manual_seed(0)
    one = OneBase.build(base, None, Settings(), getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.005)
    return one.requires_grad_(False)


def ours(one, prompts: list[list[int]], options: argparse.Namespace, new_tokens: int, greedy: bool) -> list[list[int]]:
    import torch

    from ajuste.learning.rl.rollout import sample

    stops = [options.stop_id] if greedy else []
    generator = None if greedy else torch.Generator().manual_seed(0)
    found = sample(one, prompts, new_tokens, stops, options.pad_id, 0.0 if greedy else 0.7, generator)
    return [row[keep].tolist() for row, keep in zip(found.responses, found.mask, strict=True)]


def generate(one, prompts: list[list[int]], options: argparse.Namespace, new_tokens: int, greedy: bool):
    import torch

    from ajuste.learning.text.generate import pad_left

    ids, mask = pad_left(prompts, options.pad_id)
    how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
    with torch.no_grad():
        out = one.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, pad_token_id=options.pad_id,
            eos_token_id=options.stop_id if greedy else None, **how,
        )[:, ids.shape[1] :].tolist()  # fmt: skip
    if not greedy:
        return out
    return [row[: row.index(options.stop_id) + 1] if options.stop_id in row else row for row in out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=["ours", "generate"])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="{set: [token ids, ...]}")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--greedy-tokens", type=int, required=True)
    parser.add_argument("--sampled-tokens", type=int, required=True)
    parser.add_argument("--stop-id", type=int, required=True)
    parser.add_argument("--pad-id", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()

    import torch
    import transformers

    from ajuste.core.allocator import keep_memory

    keep_memory()  # both sides
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    one = policy(options.base, options.dtype)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = ours if options.side == "ours" else generate
    results = []
    for name, rows in json.loads(options.prompts.read_text(encoding="utf-8")).items():
        for batch in options.batches:
            prompts = rows[:batch]
            for greedy in (True, False):
                tokens = options.greedy_tokens if greedy else options.sampled_tokens
                run(one, prompts, options, min(tokens, 4), greedy)  # warm-up
                start, cpu = time.perf_counter(), time.process_time()
                responses = run(one, prompts, options, tokens, greedy)
                results.append({
                    "set": name, "batch": batch, "greedy": greedy, "seconds": time.perf_counter() - start,
                    "cpu_seconds": time.process_time() - cpu, "tokens": sum(map(len, responses)),
                    "responses": responses if greedy else [],
                })  # fmt: skip
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found = {"side": options.side, "dtype": options.dtype, "peak_mb": peak, "load": os.getloadavg()[0]}
    print("RESULT " + json.dumps({**found, "results": results}), flush=True)


if __name__ == "__main__":
    main()
