"""The bytes that preset portable promises on every x86-64 processor, and how they are recorded.

    presets/portable.digests.json    seen_on: the kinds of processor, and how each was had
                                     functions: part -> md5 of what `parts` writes
                                     stages: out -> md5, of the default run on presets tiny and portable

    python -m tests.made.portable FOLDER    the first kind alone, as JSON, in this process and its environment
    python -m tests.made.portable --record  both, into the file (minutes; after a change that changes results)
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ajuste.core import arithmetic
from ajuste.core.stages import md5_of
from tests.made.projects import ROOT, run, tiny_project

DIGESTS = ROOT / "presets/portable.digests.json"


def recorded() -> dict:
    """The content of the file."""
    return json.loads(DIGESTS.read_text(encoding="utf-8"))


def process() -> dict[str, str]:
    """The environment of a portable process that is started from here."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **arithmetic.environment(threads=1, portable=True)}


def parts(folder: Path) -> dict[str, str]:
    """Train and evaluate a classifier, and train a policy by PPO, all tiny; part -> md5 of what was written."""
    from safetensors.torch import save_file

    from ajuste.core.params import Compute
    from ajuste.models.folder import load_tokenizer
    from tasks.classify.full import FullConfig, full
    from tasks.evaluate.classify import ClassifyConfig, evaluate_classify
    from tasks.rl import loop
    from tests.made import tiny_ppo
    from tests.made.tiny_classifiers import tiny_base
    from tests.made.tiny_rows import sentence_set

    arithmetic.exact_roots()
    compute = Compute(dtype="float32", device="cpu", threads=1, seed=0, portable=True)
    training = FullConfig(
        class_weights="none", pooling="cls", lr=3e-3, warmup=0.1, epochs=1, batch_rows=8,
        accumulation=1, weight_decay=0.01, dropout=0.1, max_grad_norm=1.0, evaluations=2, patience=3,
    )  # fmt: skip
    base = tiny_base(folder / "base")
    encoded = sentence_set(folder / "encoded", load_tokenizer(base))
    (folder / "checkpoints").mkdir()
    full(training, compute, encoded, base, folder / "classifier", folder / "checkpoints")
    measuring = ClassifyConfig(bootstrap=200, batch_rows=8)
    evaluate_classify(measuring, compute, {"full": folder / "classifier"}, encoded, folder / "evaluated")
    one, settings = tiny_ppo.tiny_one(), tiny_ppo.config()
    prompts, score = tiny_ppo.tiny_prompts(), tiny_ppo.count
    loop.train(one, settings.algorithm(), prompts, score, settings, 0, folder / "ppo", tiny_ppo.STOP)
    (folder / "policy").mkdir()
    save_file(tiny_ppo.weights(one), folder / "policy/weights.safetensors")
    return {name: md5_of(folder / name) for name in ("base", "classifier", "evaluated", "policy")}


def outs(folder: Path) -> dict[str, str]:
    """out -> md5 of the default run on presets tiny and portable, in a new clone at `folder`."""
    from ajuste.tracking.project import lock

    project = tiny_project(folder)
    run(project, sys.executable, "-m", "ajuste.cli.main", "preset", "portable")
    run(project, sys.executable, "-P", "-m", "dvc", "repro", "--no-run-cache", timeout=7200)
    lock = lock.parse((project / "dvc.lock").read_text(encoding="utf-8"))
    return {out["path"]: out["md5"] for entry in lock.values() for out in entry.get("outs", [])}


def main() -> None:
    if sys.argv[1:] != ["--record"]:
        print(json.dumps(parts(Path(sys.argv[1]))))
        return
    from ajuste.tracking.again.hardware import cpu_kind

    found = recorded() if DIGESTS.exists() else {"seen_on": []}
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run([sys.executable, "-m", "tests.made.portable", scratch], env=process(),
                              capture_output=True, text=True, check=True)  # fmt: skip
        found["functions"] = json.loads(done.stdout.strip().splitlines()[-1])
        found["stages"] = outs(Path(scratch) / "project")
    found["seen_on"] = sorted({*found["seen_on"], cpu_kind()})
    DIGESTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
