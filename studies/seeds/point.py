"""Study seeds: PPO once more with a seed of its own, judged on the test prompts beside the SFT model.

    python -m studies.seeds.point SEED

Run by `ajuste study seeds`, after the default run. The seed changes the adapter's first weights, the order of the
prompts and every sample; the base, the reward model, the gold scorer and the test prompts stay.
Writes artifacts/studies/seeds/<SEED>.json: what stage `evaluate_ppo` reports, and the alarms.
"""

import sys
import tempfile
from pathlib import Path

from ajuste.core import allocator
from ajuste.core.errors import UsageError
from ajuste.core.params import Compute, read_yaml, section, typed
from ajuste.models import decoder
from studies.points import errors_told, write
from tasks.evaluate.policy import Folders, Ledger, evaluate_policy
from tasks.evaluate.ppo import PpoConfig as EvaluateConfig
from tasks.forgetting.scores import ForgettingConfig
from tasks.ppo import PpoConfig, ppo

STUDY, OUT, ARTIFACTS = Path("studies/seeds"), Path("artifacts/studies/seeds"), Path("artifacts")


def main(seed: int) -> None:
    params = read_yaml(Path("params.yaml"))
    if seed not in read_yaml(STUDY / "params.yaml")["seeds"]:
        raise UsageError(f"no point `{seed}`: {STUDY / 'params.yaml'} names the seeds")
    compute = typed(Compute, {**params["compute"], "seed": seed}, "compute")
    config = typed(PpoConfig, section(params, "ppo", ""), "ppo")
    merged = ARTIFACTS / "merged"
    # the same test prompts and samples' seed for all points: only the training varies
    judge = typed(Compute, params["compute"], "compute")
    control = typed(ForgettingConfig, section(params, "forgetting", ""), "forgetting")
    ledger = Ledger(control, ARTIFACTS / "base/decoder", Path("data/control"), ARTIFACTS / "evaluated/forgetting_base")
    allocator.keep_memory()
    with tempfile.TemporaryDirectory() as scratch:
        adapter, whole, checkpoints = (Path(scratch) / name for name in ("adapter", "whole", "checkpoints"))
        checkpoints.mkdir()
        done = ppo(config, compute, ARTIFACTS, adapter, checkpoints)
        allocator.give_back()
        model, tokenizer, card = decoder.load(adapter, merged / "instruct")
        decoder.save_whole(model.merge_and_unload(), tokenizer, whole, card)
        folders = Folders(
            merged / "instruct", whole, merged / "reward", merged / "gold", ARTIFACTS / "encoded/preferences"
        )
        report = evaluate_policy(
            typed(EvaluateConfig, section(params, "evaluate", "ppo"), "evaluate.ppo"),
            judge, folders, ledger, Path(scratch) / "evaluated", "ppo",
        )  # fmt: skip
    write(OUT / f"{seed}.json", {
        "seed": seed, "updates": len(done["history"]), "kept": done["validation"]["update"],
        "alarms": len(done["alarms"]), **{key: value for key, value in report.items() if key != "tokens"},
    })  # fmt: skip


if __name__ == "__main__":
    with errors_told():
        main(int(sys.argv[1]))
