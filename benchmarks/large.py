"""A model of a billion random weights through merge, registration and loading: peak memory, and copies on the disk.

    python -m benchmarks.large                                 1.0 billion weights in bfloat16, in a temporary folder
    python -m benchmarks.large --layers 2 --work FOLDER        a small one, in a folder that stays

Each step is a process of its own. Its peak is what the kernel says (VmHWM, mapped files included) above what stood
after the imports, beside the size of the weights' file. The merge is the stage's own, with its proof; registering goes
through DVC's cache and MLflow as `ajuste run` does; loading is what a server does before it answers, digest and smoke
request included, in the dtype of the file. Copies are counted by inode: a second name of a file is none.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import value

LIMIT, COPIES = 1.5, 2.05  # of the weights' own size; base and merged model, and what else is small
STEPS = ("make", "merge", "register", "load")
BASE, ADAPTER, MERGED, ROWS = (Path("artifacts") / part for part in (
    "base/decoder", "adapters/instruct", "merged/instruct", "encoded/instructions"))  # fmt: skip
QUESTIONS = ("Name a warm film.", "Is the plot good?", "Which scene was funny?")
LORA = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", "target_modules": "all-linear"}


# --- the steps --------------------------------------------------------------------------------------------------------


def make(layers: int) -> None:
    """A Llama of TinyLlama's shape, an adapter of random numbers, and a few rows."""
    import peft
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ajuste.core.hashes import sha256_of
    from ajuste.learning.text import chat
    from ajuste.models import decoder
    from ajuste.models.folder import load_tokenizer
    from ajuste.models.made import make_tiny_decoder

    make_tiny_decoder(BASE)
    tokenizer = load_tokenizer(BASE)
    config = AutoConfig.from_pretrained(BASE)
    config.update({"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": layers, "head_dim": 64,
                   "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32_000})  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(BASE, max_shard_size="100GB")
    identity = {"source": "made", "id": "made-large", "sha256": sha256_of(BASE / "model.safetensors"),
                "tokenizer_sha256": sha256_of(BASE / "tokenizer.json"),
                "template_sha256": chat.template_sha256(tokenizer), "dtype": "bfloat16"}  # fmt: skip
    (BASE / "base.json").write_text(json.dumps(identity))
    model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.02)
    card = {"kind": "decoder", "method": "lora", "strategy": "lora", "base": decoder.identity_of(BASE),
            "parameters": {"trainable": 1, "total": 1, "share": 0.01}, "max_tokens": 64, "dtype": "bfloat16",
            "validation": {"loss": 2.0, "perplexity": 7.389}, "mergeable": True, "quantisation": None}  # fmt: skip
    decoder.save_adapter(model, tokenizer, ADAPTER, card)
    (ADAPTER / "history.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    ROWS.mkdir(parents=True)
    rows = []
    for number, question in enumerate(QUESTIONS):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "The last scene."}]
        (prompt, _), (response, _) = chat.segments(tokenizer, turns)
        rows.append({"row_id": f"{number:016x}", "input_ids": prompt + response, "prompt_tokens": len(prompt)})
    for split in ("test", "validation"):
        pq.write_table(pa.Table.from_pylist(rows), ROWS / f"{split}.parquet")


def merge() -> None:
    """Stage `merge_instruct`, in the base's dtype: rounded to bfloat16 it is further off than in float32."""
    from ajuste.core.params import Compute
    from tasks.merge.decoder import DecoderConfig, merge_decoder

    sizes = {"rows": len(QUESTIONS), "prompts": 1, "new_tokens": 4}
    config = DecoderConfig(max_logit_difference=1.0, min_equal_tokens=0.01, **sizes)
    compute = Compute(dtype="float32", device="cpu", threads=1, seed=0)
    proof = merge_decoder(config, compute, ADAPTER, BASE, ROWS, MERGED)
    print(json.dumps({key: proof[key] for key in ("dtype", "max_logit_difference", "max_weight_difference")}))


def register() -> None:
    """Into DVC's cache, dvc.lock and MLflow."""
    import yaml

    from ajuste.core.stages import md5_of
    from ajuste.tracking.project import dvc
    from ajuste.tracking.registry import register as registering
    from ajuste.tracking.runs import runs

    if not Path(".dvc").is_dir():
        subprocess.run(["git", "init", "--quiet", "."], check=True)
        _dvc(dvc, "init", "-q")
        _dvc(dvc, "config", "cache.type", "reflink,hardlink,copy")
        _dvc(dvc, "add", "-q", *map(str, (BASE, ADAPTER, MERGED)))
        made = {"instruct": ([BASE, ROWS], ADAPTER), "merge_instruct": ([ADAPTER, BASE, ROWS], MERGED)}
        entries = {name: {
            "cmd": f"python -m tasks.{name}", "params": {"params.yaml": {"compute": {"seed": 0}}},
            "deps": [{"path": str(dep), "md5": md5_of(dep), "hash": "md5"} for dep in deps],
            "outs": [{"path": str(out), "md5": md5_of(out), "hash": "md5"}],
        } for name, (deps, out) in made.items()}  # fmt: skip
        Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))
        Path("params.yaml").write_text("compute: {seed: 0}\n")
    for model in registering.models():
        run = runs.begin(model.stage, model.key, runs.parent("large"))
        number, _ = registering.find_or_create(model, run, {}, {})
        print(f"{model.name}/{number}")


def _dvc(dvc: object, *args: str) -> None:
    done = dvc.run(*args)
    assert done.returncode == 0, done.stderr


def load() -> None:
    """The registered version, as far as its first tokens."""
    from ajuste.models import decoder
    from ajuste.models.files.tensors import stored_dtype
    from ajuste.serving import loading, smoke
    from ajuste.tracking.registry import registry

    version = registry.resolve("assistant/1")
    loading.check_digest(version)
    model, tokenizer, card = decoder.load(version.path, dtype=stored_dtype(version.path / decoder.WEIGHTS))
    smoke.check(model, tokenizer, card)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} weights")


# --- measuring --------------------------------------------------------------------------------------------------------


def _memory(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def step(name: str, layers: int) -> None:
    """Run a step in this process; the last line says its peak above the imports, and its seconds."""
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    if name == "register":
        import mlflow.pyfunc  # noqa: F401
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = _memory("VmRSS"), time.perf_counter()
    {"make": lambda: make(layers), "merge": merge, "register": register, "load": load}[name]()
    print(json.dumps({"peak": _memory("VmHWM") - before, "seconds": time.perf_counter() - began}))


def on_disk(folder: Path) -> int:
    """Bytes of the weights in a folder, each inode once."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum({stat.st_ino: stat.st_size for stat in stats if stat.st_size > 1_000_000}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--work", type=Path, default=None, help="an empty folder that stays")
    parser.add_argument("--step", choices=STEPS, default="", help="used by the steps' own processes")
    asked = parser.parse_args()
    if asked.step:
        step(asked.step, asked.layers)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = (asked.work or Path(folder)).resolve()
        root = Path(__file__).resolve().parents[1]
        env = {**os.environ, "AJUSTE_HOME": str(work), "PYTHONPATH": str(root), "DVC_NO_ANALYTICS": "1"}
        print("| step | peak above the imports | of the weights' size | seconds | says |\n|---|---|---|---|---|")
        for name in STEPS:
            command = [sys.executable, "-m", "benchmarks.large", "--step", name, "--layers", str(asked.layers)]
            done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            *said, last = done.stdout.splitlines()
            found, size = json.loads(last), (work / BASE / "model.safetensors").stat().st_size
            print(f"| {name} | {found['peak'] / 1e9:.2f} GB | {found['peak'] / size:.2f} | {found['seconds']:.0f} | "
                  f"{'; '.join(said)} |", flush=True)  # fmt: skip
            value(f"{name}, peak above the imports", "bytes", [found["peak"]])
            value(f"{name}, clock", "s", [found["seconds"]])
            if name != "make" and found["peak"] > LIMIT * size:
                print(f"{name} needs more than {LIMIT} times the weights' size", file=sys.stderr)
        print(f"\nWeights: {size / 1e9:.2f} GB. On the disk, each inode once: {on_disk(work) / size:.2f} times that "
              f"(wanted: at most {COPIES}).")  # fmt: skip


if __name__ == "__main__":
    main()
