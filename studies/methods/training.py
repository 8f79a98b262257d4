"""How each method of the study is trained, by the stages' own functions: from the SFT model to an adapter folder.

    ppo, grpo, rloo   tasks/{ppo,grpo,rloo}.py: section `ppo` of params.yaml, and over it studies/grpo/params.yaml
    rejection         tasks/best_of_n.py draws, tasks/rejection.py takes the best, tasks/instruct.py learns them
    dpo               tasks/dpo.py: section `dpo`, on as many pairs as the samplers' passes make (budget.py)

None of them chooses by gold, which judges: the samplers keep their last weights (`keep: last`), DPO and rejection
sampling the epoch with the lowest loss on validation. GRPO, RLOO and rejection sampling with one seed answer the very
same prompts, the first B / n of the loop's order (rejection but for those held back), PPO the first B.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ajuste.core.params import Compute, Config, read_yaml, typed
from studies.methods import budget
from studies.methods.budget import Spent
from studies.methods.shared import MethodsConfig
from studies.policies import ARTIFACTS, GOLD, PREFERENCES, REWARD, SFT, default
from studies.stages import sampled
from tasks import best_of_n
from tasks.best_of_n import DrawConfig, draw
from tasks.dpo import DpoConfig, dpo
from tasks.dpo import Folders as DpoFolders
from tasks.evaluate import policy, validation
from tasks.grpo import GrpoConfig, grpo
from tasks.instruct import InstructConfig, instruct
from tasks.ppo import PpoConfig, ppo
from tasks.rejection import best_rows
from tasks.rloo import RlooConfig, rloo

GRPO, BEST_OF_N = Path("studies/grpo/params.yaml"), Path("studies/best-of-n/params.yaml")
SAMPLERS: dict[str, tuple[type[Config], Callable[..., dict]]] = {
    "ppo": (PpoConfig, ppo), "grpo": (GrpoConfig, grpo), "rloo": (RlooConfig, rloo),
}  # fmt: skip


def train(method: str, study: MethodsConfig, compute: Compute, work: Path) -> tuple[Path, Spent, int]:
    """Train in the empty folder `work`; returns the adapter's folder, what it spent, and how many alarms rang.

    Raises UsageError and DataError as the stage does, and KeyError for a method that trains nothing.
    """
    (work / "checkpoints").mkdir()
    if method in SAMPLERS:
        return _sampled(method, study, compute, work)
    return {"dpo": _dpo, "rejection": _rejection}[method](study, compute, work)


def _sampled(method: str, study: MethodsConfig, compute: Compute, work: Path) -> tuple[Path, Spent, int]:
    config_type, run = SAMPLERS[method]
    updates = budget.updates(study.samples, _ppo()["batch_rows"])
    # the radar looks at one prompt, and chooses nothing
    same = {"score": "reward", "updates": updates, "keep": "last", "record": [], "radar_every": updates,
            "radar_prompts": 1}  # fmt: skip
    own = {} if method == "ppo" else read_yaml(GRPO)[method]
    config: Any = typed(config_type, sampled(config_type, own | same), method)
    done = run(config, compute, ARTIFACTS, work / "adapter", work / "checkpoints")
    samples = len(done["history"]) * config.batch_rows
    return work / "adapter", Spent(samples, samples * config.epochs), len(done["alarms"])


def _rejection(study: MethodsConfig, compute: Compute, work: Path) -> tuple[Path, Spent, int]:
    learnt, held_back = budget.prompts(study.samples, study.n, study.held_back)
    prompts = {
        "train": in_order(policy.read_prompts(PREFERENCES, "train", None), learnt, compute.seed),
        "validation": validation.first(validation.halves(PREFERENCES)[0], held_back),
    }
    config = default(DrawConfig, "evaluate", "ppo", samples=study.n)
    folders = best_of_n.Folders(SFT, REWARD, GOLD, PREFERENCES)
    for split, some in prompts.items():
        draw(config, compute, folders, some, work / f"{split}.parquet")
    samples = {split: work / f"{split}.parquet" for split in prompts}
    rows = best_rows(samples, study.n, PREFERENCES, work / "rows")["splits"]
    epochs = _ppo()["epochs"]
    own = {**read_yaml(BEST_OF_N)["rejection"]["instruct"], "epochs": epochs, "evaluations": 1, "patience": epochs}
    instruct(
        default(InstructConfig, "instruct", **own), compute, work / "rows", SFT, work / "adapter", work / "checkpoints"
    )
    return work / "adapter", Spent(sum(some["samples"] for some in rows.values()), rows["train"]["rows"] * epochs), 0


def in_order(prompts: policy.Prompts, number: int, seed: int) -> policy.Prompts:
    """The first `number` prompts in the order in which the sampling loop with this seed takes them."""
    order = np.random.default_rng([seed, 0]).permutation(len(prompts.ids))[:number]
    columns = (prompts.row_ids, prompts.ids, prompts.prefilled, prompts.prefills)
    return policy.Prompts(*([column[i] for i in order] for column in columns))


def _dpo(study: MethodsConfig, compute: Compute, work: Path) -> tuple[Path, Spent, int]:
    available = pq.read_metadata(PREFERENCES / "train.parquet").num_rows
    rows, epochs = budget.comparisons(study.samples, _ppo()["epochs"], available)
    encoded = fewer(work / "encoded", {"train": rows, "validation": study.pairs, "test": study.pairs})
    # two answers are the fewest that its own look at validation takes
    config = default(DpoConfig, "dpo", epochs=epochs, evaluations=1, patience=epochs, samples=2)
    folders = DpoFolders(encoded, SFT, ARTIFACTS / "reference", GOLD)
    done = dpo(config, compute, folders, work / "adapter", work / "checkpoints")
    responses = pq.read_table(encoded / "train.parquet", columns=["responses"])["responses"].to_pylist()
    passes = sum(map(len, responses)) * epochs
    return work / "adapter", Spent(passes=passes, pairs=rows * epochs), len(done["alarms"])


def fewer(out: Path, limits: dict[str, int]) -> Path:
    """The encoded preferences with the comparisons of the lowest row ids alone, so many of each split."""
    out.mkdir()
    for name in ("encoding.json", "prompts_validation.parquet"):
        (out / name).write_bytes((PREFERENCES / name).read_bytes())
    for split, number in limits.items():
        table = pq.read_table(PREFERENCES / f"{split}.parquet").sort_by("row_id")
        pq.write_table(table.slice(0, number), out / f"{split}.parquet")
    return out


def _ppo() -> dict:
    return read_yaml(Path("params.yaml"))["ppo"]
