"""Rejection sampling: the SFT policy learns from its own best answers, and then samples nothing.

    y* = the best of n by the reward model          for each prompt
    L(theta) = -sum_t log p(y*_t | y*_<t, x) / N    the supervised loss of tasks/instruct.py on these rows

One round of RAFT (Dong et al., 2023) and of Llama 2's rejection sampling (Touvron et al., 2023). Its budget is said in
samples: n for each prompt, drawn once from the policy that training starts from.

    best_rows    instruction rows of the best answers, as artifacts/encoded/instructions holds them; the tokens are the
                 very ones that were drawn, and only they are learnt, not the prompt nor the prefill
    rejection    a LoRA on the merged SFT model by the function of stage `instruct`; its evaluations choose by the loss
                 on the best answers to the first half of the validation prompts, the second half judges what was kept

Reads   artifacts/merged/{instruct, reward, gold}, artifacts/encoded/preferences, the samples of tasks/best_of_n.py
Writes  artifacts/adapters/rejection: an adapter as stage `instruct` writes one, whose card also has the gain of gold
        and the KL on validation, and the budget
Run it: `ajuste study best-of-n`, after the default run (studies/best-of-n/).
Differs from the papers: one round, one temperature, and an answer that was cut stays in, without an end to learn.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import write_json
from ajuste.core.params import Compute
from ajuste.learning.losses.cross_entropy import IGNORED
from ajuste.models import decoder
from ajuste.models.folder import CARD, read_card
from ajuste.rows.encoded.labelled import read_encoding
from tasks.best_of_n import read_samples
from tasks.evaluate import policy, validation
from tasks.instruct import InstructConfig, instruct

METHOD = "rejection"


def best_rows(samples: dict[str, Path], n: int, encoded: Path, out: Path) -> dict:
    """Write the best of n of each prompt as rows of `out`/<split>.parquet, and encoding.json, which is returned.

    samples: the file of tasks/best_of_n.py of each split. encoded: where its prompts stand. Of equals the first drawn
    is taken. Raises UsageError for n above the samples that there are, DataError for a prompt that `encoded` has not.
    """
    out.mkdir(parents=True, exist_ok=True)
    report: dict = {"set": METHOD, "n": n, "max_tokens": 0, "splits": {}}
    for split, path in samples.items():
        found, table = read_samples(path), pq.read_table(encoded / f"prompts_{split}.parquet")
        known = {row["row_id"]: row for row in table.select(["row_id", "prompt_ids", "location"]).to_pylist()}
        N = found["proxy"].shape[1]
        if n > N:
            raise UsageError(f"n {n}: {path} has {N} samples a prompt; lower `rejection.n` or raise `samples`")
        if missing := [row_id for row_id in found["row_id"] if row_id not in known]:
            raise DataError(f"{path}: {encoded} has no prompt {missing[0]}: run stage `sample` again")
        best = found["proxy"][:, :n].argmax(axis=1)
        rows = [
            _row(known[row_id], found["response_ids"][i][best[i]], found["text"][i][best[i]])
            for i, row_id in enumerate(found["row_id"])
        ]
        lists = {name: pa.list_(pa.int32()) for name in ("input_ids", "labels")}
        columns = {name: pa.array([row[name] for row in rows], lists.get(name)) for name in rows[0]}
        pq.write_table(pa.table(columns), out / f"{split}.parquet")
        trained = sum(label != IGNORED for row in rows for label in row["labels"])
        report["max_tokens"] = max(report["max_tokens"], *(row["length"] for row in rows))
        report["splits"][split] = {"rows": len(rows), "samples": n * len(rows), "trained_tokens": trained}
    write_json(out / "encoding.json", report)
    return report


def _row(prompt: dict, response: list[int], text: str) -> dict:
    """An encoded instruction: the prompt is read, the response learnt."""
    ids = [*prompt["prompt_ids"], *response]
    return {
        "row_id": prompt["row_id"], "input_ids": ids, "labels": [IGNORED] * len(prompt["prompt_ids"]) + response,
        "prompt_tokens": len(prompt["prompt_ids"]), "reference": text, "category": "", "source": METHOD,
        "length": len(ids), "location": prompt["location"],
    }  # fmt: skip


def rejection(
    config: InstructConfig, judging: policy.PolicyConfig, compute: Compute, rows: Path, base: Path, gold: Path,
    encoded: Path, out: Path, checkpoints: Path,
) -> dict:  # fmt: skip
    """Train on the rows of `best_rows`, judge the kept weights on validation prompts, and write the adapter `out`.

    checkpoints: as tasks/instruct.py takes it. Returns the card. Raises UsageError and DataError.
    """
    if decoder.is_adapter(base):
        raise UsageError(f"{base} holds an adapter, and a LoRA needs a whole model: set `instruct.method` to one that "
                         "can be merged or to full")  # fmt: skip
    if config.method != "lora":
        raise UsageError(f"rejection.method is `{config.method}`: versions of this method are LoRA, set it to lora")
    done = instruct(config, compute, rows, base, out, checkpoints)
    prompts = validation.first(validation.halves(encoded)[1], validation.MOST)
    dtype, device = getattr(torch, judging.dtype), compute.torch_device()
    try:
        after, tokenizer, _ = decoder.load(out, base, dtype)
        models = {policy.BEFORE: decoder.load(base, dtype=dtype)[0].to(device), METHOD: after.to(device)}
        by = validation.Judges(gold, None)
        found = validation.answered(models, tokenizer, prompts, judging, by, compute, "default")
    except ValueError as error:
        raise UsageError(f"rejection: {error}") from None
    report = validation.summarised(found, METHOD, judging.bootstrap, compute.seed)
    gain = report["gold"]["difference"]
    encoding = read_encoding(rows)
    card = read_card(out) | {
        "method": METHOD, "strategy": METHOD, "max_tokens": read_card(base)["max_tokens"],
        "n": encoding["n"], "samples": sum(split["samples"] for split in encoding["splits"].values()),
        "validation": {
            "gold": report["gold"][METHOD]["value"], "gold_gain": gain["value"], "gold_gain_low": gain["low"],
            "gold_gain_high": gain["high"], "kl": report["kl"]["value"], **done["validation"],
        },
    }  # fmt: skip
    write_json(out / CARD, card, sort_keys=True, ensure_ascii=False)
    return card
