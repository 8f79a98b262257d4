"""Does anybody notice when the champion changes? Requests at a fixed rate while the alias moves, to a real server.

    versions    classifiers of MiniLM's shape with random weights, whose heads always say the same label: number n says
                `label n` with p > 0.99, so an answer proves which version gave it
    requests    one text each, started by the clock at `rate` a second whether or not earlier ones are answered;
                a latency counts from that start, so a stall is not hidden by the requests that it held back
    a move      alias `champion` set with MLflow's client; seen by the first answer that names the new version
    control     the same requests for as long, with nothing moving

Run it from the project's folder:

    python -m benchmarks.alias > docs/measured/alias.md
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mlflow import MlflowClient
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizerFast

from ajuste.models import classifier
from ajuste.models.folder import sha256_of
from benchmarks.results import value

ROOT = Path(__file__).parents[1]
NAME = "reviews-classifier"
TEXT = "a warm and funny film about people who talk past each other until it is nearly too late"
WORKERS = 24


@dataclass
class Seen:
    """What the requests of one run met. Times are seconds of time.monotonic."""

    seconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)         # anything but a right answer of the version that it names
    first: dict[int, float] = field(default_factory=dict)   # move -> seconds until the first answer by its version
    versions: set[str] = field(default_factory=set)

    def line(self, name: str) -> str:
        """A row of the table: percentiles in milliseconds."""
        at = np.percentile(np.array(self.seconds) * 1000, [50, 90, 99, 100])
        return (f"| {name} | {len(self.seconds)} | {len(self.failed)} | "
                + " | ".join(f"{value:.1f}" for value in at) + " |")


def tokenizer() -> BertTokenizerFast:
    """Words of TEXT, no subwords."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(TEXT.split())]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
             "mask_token": "[MASK]"}
    return BertTokenizerFast(tokenizer_object=made, **names)


def make(folder: Path, number: int, count: int, width: int = 384, layers: int = 6, vocabulary: int = 30_522) -> Path:
    """A classifier of `count` labels that always says `label {number}`, with p > 0.99; all its weights its own."""
    torch.manual_seed(number)
    config = BertConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32,
                        intermediate_size=4 * width, vocab_size=vocabulary)
    base = folder / f"base{number}"
    BertModel(config).save_pretrained(base)
    labels = [f"label {n}" for n in range(1, count + 1)]
    model = classifier.build(base, labels)
    with torch.no_grad():
        head = classifier.last_linear(model)
        head.weight.zero_()
        head.bias.zero_()
        head.bias[number - 1] = 10.0
    card = {"task": "sequence", "strategy": "full", "pooling": "cls", "labels": labels, "max_tokens": 64,
            "base": {"id": "random", "sha256": sha256_of(base / "model.safetensors")}}
    classifier.save(model, tokenizer(), folder / f"version{number}", card)
    return folder / f"version{number}"


def register(client: MlflowClient, paths: list[Path]) -> None:
    """Each folder as the next version of NAME; the first is champion."""
    client.create_registered_model(NAME)
    for path in paths:
        tags = {"sha256": sha256_of(path / "model.safetensors"), "strategy": "full"}
        made = client.create_model_version(NAME, path.as_uri(), tags=tags)
        if made.version in (1, "1"):
            client.set_registered_model_alias(NAME, "champion", "1")


@contextlib.contextmanager
def serve(home: Path, *options: str, **environment: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """`ajuste serve` as a process of its own with this home: its port and the process. Its output goes to serve.log."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    known = os.environ | {"PYTHONPATH": str(ROOT), "AJUSTE_HOME": str(home), "PATH": path} | environment
    command = [sys.executable, "-u", "-m", "ajuste.cli.main", "serve", "--port", "0", *options]
    with (home / "serve.log").open("ab") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=known, start_new_session=True, stdout=subprocess.PIPE,
                                  stderr=log)
    try:
        deadline, said = time.monotonic() + 120, b""
        while b"listening on " not in said or not said.endswith(b"\n"):
            if time.monotonic() > deadline or server.poll() is not None:
                raise RuntimeError(f"the server did not start: {said.decode()} {(home / 'serve.log').read_text()}")
            if select.select([server.stdout], [], [], 1)[0]:
                said += os.read(server.stdout.fileno(), 4096)
        yield int(said.decode().split("listening on http://127.0.0.1:")[1].split()[0]), server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def ask(connection: http.client.HTTPConnection) -> tuple[str, str]:
    """The version that an answer names, and what is wrong with the answer ("" if nothing)."""
    body = json.dumps({"model": NAME, "text": TEXT})
    connection.request("POST", "/classify", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        return "", f"status {answer.status}: {content[:200]!r}"
    said = json.loads(content)
    result = said["results"][0]
    right = result["label"] == f"label {said['version']}" and result["probability"] > 0.99
    return said["version"], "" if right else f"version {said['version']} is named, and {result['label']} was answered"


class Load:
    """Requests at a fixed rate from `start` to `end`, by WORKERS threads that each keep a connection."""

    def __init__(self, port: int, rate: float) -> None:
        self.seen, self._port, self._rate = Seen(), port, rate
        self._lock, self._ended, self._next = threading.Lock(), False, 0
        self._wanted: tuple[int, str, float] | None = None      # move, version, since when
        self._threads = [threading.Thread(target=self._run) for _ in range(WORKERS)]

    def start(self) -> None:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def end(self) -> Seen:
        self._ended = True
        for thread in self._threads:
            thread.join()
        return self.seen

    def expect(self, move: int, version: str) -> None:
        """From now on the first answer by that version is the one that saw this move."""
        self._wanted = (move, version, time.monotonic())

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._ended:
            with self._lock:
                due, self._next = self._began + self._next / self._rate, self._next + 1
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                version, wrong = ask(connection)
            except (OSError, http.client.HTTPException, ValueError) as error:
                version, wrong = "", f"{type(error).__name__}: {error}"
                connection.close()
            now = time.monotonic()
            with self._lock:
                self.seen.seconds.append(now - due)
                self.seen.versions.add(version)
                if wrong:
                    self.seen.failed.append(wrong)
                wanted = self._wanted
                if wanted and version == wanted[1]:
                    self.seen.first.setdefault(wanted[0], now - wanted[2])


def moving(load: Load, move: Callable[[str], None], count: int, moves: int, patience: float = 30.0) -> None:
    """Move the alias `moves` times, to versions 2, 3, ... and round again; each time wait until it was seen."""
    for number in range(1, moves + 1):
        version = str(number % count + 1)
        move(version)
        load.expect(number, version)
        deadline = time.monotonic() + patience
        while number not in load.seen.first and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--moves", type=int, default=10)
    parser.add_argument("--versions", type=int, default=11)
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        paths = [make(home, number, options.versions) for number in range(1, options.versions + 1)]
        (home / "mlruns").mkdir()
        client = MlflowClient(f"sqlite:///{home}/mlruns/mlflow.db")
        register(client, paths)
        size = (paths[0] / "model.safetensors").stat().st_size
        with serve(home) as (port, _):
            warm = Load(port, options.rate)
            warm.start()
            time.sleep(5)
            warm.end()
            load, began = Load(port, options.rate), time.monotonic()
            load.start()
            moving(load, lambda version: client.set_registered_model_alias(NAME, "champion", version),
                   options.versions, options.moves)
            moved, lasted = load.end(), time.monotonic() - began
            control = Load(port, options.rate)
            control.start()
            time.sleep(lasted)
            still = control.end()
    first = sorted(moved.first.values())
    value("from a move to the first answer by the new version", "s", first)
    for name, seen in (("while it moves", moved), ("nothing moves", still)):
        value(f"latency, {name}", "s", seen.seconds)
        value(f"failed or wrong, {name}", "requests", [len(seen.failed)])
    print("# While the alias moves\n")
    print(f"{options.rate:.0f} requests a second to the classifier (`{TEXT}`), {options.moves} moves of alias "
          f"`champion` to versions that were never loaded before ({size / 1e6:.0f} MB each, MiniLM's shape, random "
          "weights). Every answer's label must be the one that only the named version says. Milliseconds:\n")
    print("| | requests | failed or wrong | median | 90 % | 99 % | longest |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print(moved.line("while it moves"))
    print(still.line("nothing moves"))
    print(f"\nMoves seen: {len(first)} of {options.moves}; from the move to the first answer by the new version "
          f"{first[0]:.1f} to {first[-1]:.1f} s, median {first[len(first) // 2]:.1f} s.\n")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load average {busy:.1f} before the start and "
          f"{os.getloadavg()[0]:.1f} at the end, clients on the same cores. Made by `python -m benchmarks.alias`.")
    for wrong in moved.failed[:5]:
        print(f"\n- {wrong}")


if __name__ == "__main__":
    main()
