"""The trainings of benchmarks/plan.py, each kind in a fork of one process; prints one line `RESULT [json, ...]`.

    python -m benchmarks.sides.plan --kinds full lora --sizes small large --work FOLDER --threads 1

A random Llama and random rows are laid out as a run lays them out; the stage's own function trains, and the largest
resident memory since its start is read when its last step is done. First the same training runs on a tiny model, so
that whatever is imported, mapped or set up once belongs to the baseline; then the sizes follow one another, the
smallest first, each after free memory was given back. The allocator is glibc's.
"""

import argparse
import copy
import ctypes
import gc
import importlib
import json
import os
import traceback
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

from benchmarks.sides.ppo import forget_peak, peak_mb

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2
LORA = {"r": 8, "targets": ["all-linear"]}
ONCE = {"epochs": 1, "batch_rows": 8, "accumulation": 1, "evaluations": 1}


class Size(NamedTuple):
    """Of a Llama with heads of width `head` and of its rows: the longest has `tokens`."""

    layers: int
    width: int
    inner: int
    vocabulary: int
    tokens: int
    head: int = 32


SIZES = {
    "tiny": Size(2, 64, 176, 2400, 32),
    "small": Size(8, 128, 352, 4096, 224),
    "medium": Size(12, 192, 528, 8192, 256),
    "large": Size(16, 256, 704, 16384, 256),
}
KINDS = {
    "full": ("instruct", {**ONCE, "method": "full", "dtype": "float32", "lr": 1e-5}),
    "lora": ("instruct", {**ONCE, **LORA, "method": "lora", "dtype": "bfloat16"}),
    "qlora": ("instruct", {**ONCE, **LORA, "method": "qlora", "dtype": "bfloat16"}),
    "reward": ("reward", {**ONCE, **LORA, "dtype": "bfloat16"}),
    "dpo": ("dpo", {**ONCE, **LORA}),
    "ppo": ("ppo", {**LORA, "dtype": "bfloat16", "score": "rules", "updates": 2, "batch_rows": 16, "micro_rows": 16,
                    "epochs": 2, "max_new_tokens": 24, "record": [], "radar_every": 2, "kl_control": "fixed"}),
}  # fmt: skip


class Trained(Exception):
    """Carries the peak out of a stage whose training is done."""


# --- a run's folders --------------------------------------------------------------------------------------------------


def lay_out(folder: Path, size: Size, seed: int, rows: int = 8 * STEPS, equal: bool = False) -> Path:
    """artifacts/base/decoder, the same as artifacts/merged/instruct, and the encoded sets below `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ajuste.learning.text import chat
    from ajuste.models.folder import load_tokenizer, sha256_of
    from ajuste.models.made import make_tiny_decoder

    base = make_tiny_decoder(folder / "artifacts/base/decoder")
    config = AutoConfig.from_pretrained(base)
    config.update({
        "num_hidden_layers": size.layers, "hidden_size": size.width, "intermediate_size": size.inner,
        "num_attention_heads": size.width // size.head, "num_key_value_heads": size.width // (2 * size.head),
        "head_dim": size.head, "max_position_embeddings": max(config.max_position_embeddings, size.tokens),
        "vocab_size": size.vocabulary,
    })  # fmt: skip
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(base)
    identity = {
        "id": f"random-{size.width}", "sha256": sha256_of(base / "model.safetensors"),
        "tokenizer_sha256": sha256_of(base / "tokenizer.json"),
        "template_sha256": chat.template_sha256(load_tokenizer(base)),
    }  # fmt: skip
    (base / "base.json").write_text(json.dumps(identity), encoding="utf-8")
    (folder / "artifacts/merged").mkdir()
    (folder / "artifacts/merged/instruct").symlink_to(base.resolve())
    write_rows(folder / "artifacts/encoded", size, seed, rows, equal)
    return folder


def write_rows(encoded: Path, size: Size, seed: int, number: int, equal: bool) -> None:
    """Random token ids, so many training rows: of every two rows one is the longest, the other half of it to all of it;
    all the longest if `equal`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(seed)

    def ids(number: int) -> list[int]:
        return random.integers(300, 2000, number).tolist()

    def write(name: str, rows: list[dict]) -> None:
        (encoded / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), encoded / name)

    for split, count in (("train", number), ("validation", 2), ("test", 2)):
        lengths = [size.tokens if equal or i % 2 else int(random.integers(size.tokens // 2, size.tokens))
                   for i in range(count)]  # fmt: skip
        names = [f"{split}-{i:03d}" for i in range(count)]
        prompts = [ids(n // 3) for n in lengths]
        rows = [[*prompt, *ids(n - len(prompt))] for prompt, n in zip(prompts, lengths, strict=True)]
        write(f"instructions/{split}.parquet", [
            {"row_id": name, "input_ids": row, "labels": [-100] * len(prompt) + row[len(prompt) :],
             "prompt_tokens": len(prompt)}
            for name, prompt, row in zip(names, prompts, rows, strict=True)
        ])  # fmt: skip
        empty = dict.fromkeys(("agreement", "one_against_rest", "split_half"))
        write(f"preferences/{split}.parquet", [
            {"row_id": name, "prompt_ids": prompt, "responses": [row[len(prompt) :], ids(len(row) - len(prompt))],
             "margin": 1.0, "ratings": [2.0, 1.0], **empty}
            for name, prompt, row in zip(names, prompts, rows, strict=True)
        ])  # fmt: skip
        write(f"preferences/prompts_{split}.parquet", [
            {"row_id": name, "prompt_ids": prompt, "prefill": "", "prefill_tokens": 0}
            for name, prompt in zip(names, prompts, strict=True)
        ])  # fmt: skip
    for name in ("instructions", "preferences"):
        text = json.dumps({"max_tokens": size.tokens, "set": name, "template_sha256": "", "warnings": []})
        (encoded / name / "encoding.json").write_text(text, encoding="utf-8")


# --- the trainings ----------------------------------------------------------------------------------------------------


def trained(kind: str, folder: Path, params: dict) -> tuple[float, float]:
    """Run the training of a kind in a run's folder: (resident memory before it, the largest of it), MB."""
    stage = KINDS[kind][0]
    with chdir(folder):
        if stage == "dpo":
            refer(params)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = forget_peak()
        checkpoints = Path("checkpoints")
        checkpoints.mkdir()
        try:
            RUN[stage](params, checkpoints)
        except Trained:
            pass
        return before, peak_mb()


def _config(kind: type, stage: str, params: dict):
    from ajuste.core.params import section, typed

    return typed(kind, section(params, stage, ""), stage)


def _compute(params: dict):
    from ajuste.core.params import Compute

    return Compute(**params["compute"])


def _stopping(module) -> None:
    """Let the stage of a module end when its training has."""
    from tasks.supervised import loop

    def train(*args, **kwargs):
        loop.train(*args, **kwargs)
        raise Trained

    module.train = train


def instruct(params: dict, checkpoints: Path) -> None:
    import tasks.instruct as stage

    _stopping(stage)
    config = _config(stage.InstructConfig, "instruct", params)
    stage.instruct(config, _compute(params), Path("artifacts/encoded/instructions"), Path("artifacts/base/decoder"),
                   Path("out"), checkpoints)  # fmt: skip


def reward(params: dict, checkpoints: Path) -> None:
    import tasks.reward as stage

    _stopping(stage)
    config = _config(stage.RewardConfig, "reward", params)
    stage.train_reward_model(config, _compute(params), Path("artifacts/encoded/preferences"),
                             Path("artifacts/merged/instruct"), Path("out"), checkpoints)  # fmt: skip


def refer(params: dict) -> None:
    """Stage `reference`, whose word stage `dpo` reads."""
    from tasks.reference import ReferenceConfig, reference

    config = _config(ReferenceConfig, "reference", params)
    encoded, base = Path("artifacts/encoded/preferences"), Path("artifacts/merged/instruct")
    reference(config, _compute(params), encoded, base, Path("artifacts/reference"))


def dpo(params: dict, checkpoints: Path) -> None:
    import tasks.dpo as stage

    _stopping(stage)
    config, artifacts = _config(stage.DpoConfig, "dpo", params), Path("artifacts")
    folders = stage.Folders(
        artifacts / "encoded/preferences", artifacts / "merged/instruct", artifacts / "reference",
        artifacts / "merged/gold",
    )  # fmt: skip
    stage.dpo(config, _compute(params), folders, Path("out"), checkpoints)


def ppo(params: dict, checkpoints: Path, clock=None) -> None:
    """The loop of stage `ppo`; the score is the share of even tokens, so there is no reward model."""
    import torch

    from ajuste.learning.seeds import seed_everything
    from ajuste.models.one_base import OneBase
    from tasks.ppo import PpoConfig
    from tasks.rl import loop, policy

    config, compute = _config(PpoConfig, "ppo", params), _compute(params)
    seed_everything(compute.seed, compute.threads)
    one = OneBase.build(Path("artifacts/merged/instruct"), None, config.settings(), getattr(torch, config.dtype))
    one = one.to(compute.torch_device())
    prompts = policy.read_prompts(Path("artifacts/encoded/preferences"), "train", 4096)["prompt_ids"]

    def even(_: list, responses: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ((responses % 2 == 0) & mask).float().mean(1)

    loop.train(one, config.algorithm(), prompts, even, config, compute.seed, checkpoints, [0], clock=clock)


RUN = {"instruct": instruct, "reward": reward, "dpo": dpo, "ppo": ppo}


def params_of(kind: str, threads: int) -> dict:
    """params.yaml with what the kind changes."""
    from ajuste.core.params import read_yaml

    params = copy.deepcopy(read_yaml(ROOT / "params.yaml"))
    stage, changed = KINDS[kind]
    params[stage] |= changed
    params["compute"] |= {"device": "cpu", "threads": threads}
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, required=True)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES)[1:], required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    for module in ("peft", "tasks.instruct", "tasks.reward", "tasks.reference", "tasks.dpo", "tasks.ppo"):
        importlib.import_module(module)
    found = [one for kind in options.kinds for one in forked(kind, options)]
    print("RESULT " + json.dumps(found), flush=True)


def forked(kind: str, options: argparse.Namespace) -> list[dict]:
    """What `measured` returns of each size, from a fork, so that no kind inherits the heap of another."""
    folder = options.work.resolve() / kind
    child = os.fork()
    if not child:
        try:
            params = params_of(kind, options.threads)
            trained(kind, lay_out(folder / "tiny", SIZES["tiny"], 1), params)
            found = [measured(kind, size, folder / size, params) for size in options.sizes]
            (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"{kind}: failed")
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def measured(kind: str, size: str, folder: Path, params: dict) -> dict:
    """Planned and measured MB of one training, and the parts of the plan."""
    from ajuste.tracking.planning.stages import of_stage

    lay_out(folder, SIZES[size], 0)
    before, peak = trained(kind, folder, params)
    with chdir(folder):
        plan = of_stage(KINDS[kind][0], params).without("after")  # what follows the training is not measured here
    found = {
        "kind": kind, "size": size, "planned_mb": plan.total / 2**20, "measured_mb": peak - before,
        "process_mb": before, "phase": plan.peak, "load": os.getloadavg()[0],
        "parts": {f"{part.name} ({part.when})": part.bytes / 2**20 for part in plan.parts if part.bytes},
    }  # fmt: skip
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
