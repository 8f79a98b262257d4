"""Tiny folders of RLHF on disk, in the layouts of its stages: reward adapter, merged reward model, policy, prompts."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ajuste.learning import lora
from ajuste.learning.text import chat
from ajuste.models import decoder, reward
from ajuste.models.folder import sha256_of
from tests.made import tiny_decoders

ASKED = "Write a one-sentence movie review."
SNIPPETS = ["the film is a warm and funny story of a family", "a dull movie with a plot that is slow and not very good",
            "this is a good actor in a bad scene of a long film", "it is the end of the story and the story is good",
            "one of those movies that you watch and then you just forget", "the cast is good and the script is awful"]
SETTINGS = reward.Settings(r=4, alpha=8)


def whole(base: Path, folder: Path, seed: int) -> Path:
    """A decoder whose every weight was moved from `base`, as artifacts/merged/instruct is."""
    return tiny_decoders.tiny_full(base, folder, seed)


def reward_adapter(base: Path, folder: Path, seed: int = 20) -> Path:
    """A reward model on `base`, a whole decoder; its scores are random and differ widely."""
    torch.manual_seed(seed)
    model = reward.build(base, SETTINGS)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    reward.rescale(model, 1.0, 0.25)
    card = {
        "kind": "reward", "method": "lora", "base": decoder.identity_of(base), "set": "ratings", "max_tokens": 64,
        "normalisation": {"gain": 2.0, "shift": 0.25, "samples": 8, "temperature": 1.0, "new_tokens": 8},
        "validation": {"accuracy": 0.75, "loss": 0.5}, "dtype": "float32", "pad_id": model.config.pad_token_id,
        "parameters": {"trainable": 100, "total": 10_000, "share": 0.01},
    }  # fmt: skip
    reward.save(model, decoder.load_base(base)[1], folder, card)
    (folder / "history.jsonl").write_text('{"step": 1, "loss": 0.69, "lr": 0.001}\n{"step": 1, "eval_loss": 0.6}\n')
    return folder


def reward_merged(base: Path, adapter: Path, folder: Path) -> Path:
    """The adapter folded into its base, with a proof that was not computed but names the right files."""
    model, tokenizer, card = reward.load(adapter, base)
    merged = reward.attach(lora.merge(model), card["bias"])
    reward.save(merged, tokenizer, folder, card)
    prove(base, adapter, folder)
    return folder


def policy(base: Path, folder: Path, seed: int = 30, **validation: float) -> Path:
    """A LoRA adapter on `base`, as stage `ppo` writes it, with its curves, radar and samples."""
    tiny_decoders.tiny_adapter(base, folder, "lora", seed)
    gain = {"gold_gain": 0.1, "gold_gain_low": 0.04, "gold_gain_high": 0.16, "proxy_gain": 0.6, "proxy_gain_low": 0.4,
            "proxy_gain_high": 0.8}
    card = json.loads((folder / "ajuste.json").read_text()) | {
        "method": "ppo", "strategy": "ppo",
        "validation": {"update": 4, "kl": 3.5, "proxy": 0.6, "gold": 0.7, **gain, **validation},
    }  # fmt: skip
    (folder / "ajuste.json").write_text(json.dumps(card))
    curves(folder)
    return folder


def direct(base: Path, folder: Path, seed: int = 50, **validation: float) -> Path:
    """A LoRA adapter on `base`, as stage `dpo` writes it, with its curves and without an alarm."""
    tiny_decoders.tiny_adapter(base, folder, "lora", seed)
    found = {"gold": 0.7, "gold_gain": 0.05, "gold_gain_low": 0.01, "gold_gain_high": 0.09, "kl": 1.5, "loss": 0.5,
             "accuracy": 0.9, "margin": 1.2, "displacement": 0.3, "chosen": -3.0, "rejected": -3.5}
    card = json.loads((folder / "ajuste.json").read_text()) | {
        "method": "dpo", "strategy": "dpo", "loss": "sigmoid", "beta": 0.1, "validation": found | validation,
    }  # fmt: skip
    (folder / "ajuste.json").write_text(json.dumps(card))
    direct_curves(folder)
    return folder


def direct_curves(folder: Path, said: str = "") -> None:
    """history.jsonl and alarms.json of six steps of DPO, invented; with one alarm that says `said`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for step in range(1, 7):
        curve = {"chosen": -3 - step / 20, "rejected": -3 - step / 10, "reward_chosen": -step / 20, "accuracy": 0.7,
                 "reward_rejected": -step / 10, "margin": step / 20, "displacement": step / 20}
        rows.append({"step": step, "loss": 0.7 - step / 20, "lr": 1e-4, "grad_norm": 1.0, **curve})
        if step % 3 == 0:
            rows.append({"step": step, "eval_loss": 0.7 - step / 25, **{f"eval_{key}": x for key, x in curve.items()}})
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alarm = {"step": 6, "alarm": "alarm_displacement", "figure": "displacement", "value": 0.3, "limit": 0.2,
             "kept": True, "said": said}
    (folder / "alarms.json").write_text(json.dumps([alarm] if said else []))


def curves(folder: Path, hostile: str = "") -> None:
    """history.jsonl, radar.json, samples.jsonl and alarms.json of six updates, invented."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "episodes": 8 * step, "score": 0.1 * step, "score_std": 1.0, "kl": 0.8 * step,
             "k2": 0.9 * step, "k3": 0.85 * step, "rlhf_reward": 0.05 * step, "beta": 0.05 + step / 100,
             "entropy": 2.5 - step / 10, "length": 20.0, "ended": 0.9, "repeats": 0.02, "loss": 0.1, "policy_loss": 0.0,
             "value_loss": 1 / step, "approx_kl": 0.01, "clip_fraction": 0.05, "ratio_mean": 1.0, "ratio_max": 1.2,
             "grad_norm": 0.5, "lr": 1e-4} for step in range(1, 7)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def interval(value: float, half: float = 0.05) -> dict:
        return {"value": value, "low": value - half, "high": value + half}

    radar = [{"update": update, "kl": 0.8 * update, "sqrt_kl": (0.8 * update) ** 0.5, "length": 20.0, "ended": 0.9,
              "proxy": interval(0.15 * update, 0.1), "proxy_gain": interval(0.15 * update, 0.1),
              "gold": interval(0.6 + 0.03 * update - 0.004 * update**2),
              "gold_gain": interval(0.03 * update - 0.004 * update**2), "kept": update == 4} for update in (0, 2, 4, 6)]
    (folder / "radar.json").write_text(json.dumps(radar))
    samples = [{"update": update, "id": f"v{i}", "prefill": "the film is", "response": f" at {update}{hostile}",
                "proxy": update / 10, "gold": 0.5, "kl": update / 2} for update in (0, 4) for i in range(2)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    (folder / "alarms.json").write_text("[]")


def policy_merged(base: Path, adapter: Path, folder: Path) -> Path:
    """The policy folded into its base."""
    card = json.loads((adapter / "ajuste.json").read_text())
    model, tokenizer = decoder.load_base(base)
    decoder.save_whole(lora.merge(decoder.put_on(model, adapter)), tokenizer, folder, card)
    (folder / "history.jsonl").write_bytes((adapter / "history.jsonl").read_bytes())
    prove(base, adapter, folder)
    return folder


def prove(base: Path, adapter: Path, merged: Path) -> None:
    """proof.json with the figures of an exact merge and the hashes of these files."""
    (merged / "proof.json").write_text(json.dumps({
        "merged": True, "max_logit_difference": 2e-6, "tolerance": 1e-3, "equal_predictions": 1.0, "rows": 8,
        "dtype": "float32", "adapter_sha256": sha256_of(adapter / "adapter_model.safetensors"),
        "base_sha256": sha256_of(base / "model.safetensors"), "merged_sha256": sha256_of(merged / "model.safetensors"),
    }))  # fmt: skip


def prompts(base: Path, folder: Path, splits: tuple[str, ...] = ("test",), words: int = 6) -> Path:
    """prompts_{split}.parquet: the fixed prompt, and the first words of each snippet as the beginning of its answer."""
    tokenizer = decoder.load_base(base)[1]
    opening = chat.prompt_ids(tokenizer, [{"role": "user", "content": ASKED}])
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        rows = []
        for i, snippet in enumerate(SNIPPETS[::-1]):
            prefill = " ".join(snippet.split()[:words])
            ids = chat.encode(tokenizer, prefill)
            rows.append({"row_id": f"{split[:2]}{i:014x}", "prompt_ids": opening + ids, "prefill": prefill,
                         "prefill_tokens": len(ids), "source": "tiny", "location": f"tiny.csv:{i + 1}"})
        pq.write_table(pa.Table.from_pylist(rows[::-1]), folder / f"prompts_{split}.parquet")
    return folder
