"""A registry of tiny models on disk that needs no MLflow: names, versions and aliases in a dict."""

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from ajuste.learning.layers import bottleneck
from ajuste.models import decoder
from ajuste.models.folder import sha256_of
from ajuste.serving.app import make_app
from ajuste.serving.door.connections import server_of
from ajuste.serving.loading import Served
from ajuste.serving.models import Models
from tests.made import tiny_decoders, tiny_rlhf
from tests.made.tiny_classifiers import tiny_adapter, tiny_base, tiny_full, tiny_merged

torch.set_num_threads(1)


@dataclass
class FakeVersion:
    name: str
    version: int
    alias: str | None
    path: Path
    tags: dict = field(default_factory=dict)
    run_id: str | None = None


class FakeRegistry:
    """resolve() as ajuste.tracking.registry.registry.resolve promises it: an alias, a version, or the champion, else
    the challenger."""

    def __init__(self, folders: dict[str, list[Path]], aliases: dict[str, dict[str, int]]):
        self.folders, self.aliases, self.calls = folders, aliases, 0
        self.sha256 = {path: self.digest(path) for paths in folders.values() for path in paths}

    @staticmethod
    def digest(path):
        names = ("adapter_model.safetensors", bottleneck.WEIGHTS, "model.safetensors")
        return sha256_of(next(path / name for name in names if (path / name).exists()))

    def resolve(self, reference):
        self.calls += 1
        name, _, alias = reference.partition("@")
        name, _, version = name.partition("/")
        if not version:
            known = self.aliases.get(name, {})
            alias = alias or next((a for a in ("champion", "challenger") if a in known), None)
            if alias not in known:
                raise LookupError(f"{name} has no alias {alias}")
            version = known[alias]
        if int(version) > len(self.folders[name]):
            raise LookupError(f"{name} has no version {version}: there are {len(self.folders[name])}")
        path = self.folders[name][int(version) - 1]
        return FakeVersion(name, int(version), alias or None, path, {"sha256": self.sha256[path], "strategy": "lora"})


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """base, adapter (2 labels), adapter3 (3 labels), adapter_mean, merged (of adapter), full."""
    root = tmp_path_factory.mktemp("models")
    base = tiny_base(root / "base")
    made = {"base": base, "adapter": tiny_adapter(base, root / "adapter"), "full": tiny_full(base, root / "full"),
            "adapter3": tiny_adapter(base, root / "adapter3", seed=7, labels=["bad", "fair", "good"]),
            "adapter_mean": tiny_adapter(base, root / "adapter_mean", seed=8, pooling="mean")}
    return made | {"merged": tiny_merged(base, made["adapter"], root / "merged")}


@pytest.fixture
def registry(folders):
    """Two merged versions with a challenger and no champion, and three adapters of one base."""
    return FakeRegistry(
        {"reviews-classifier": [folders["full"], folders["merged"]],
         "reviews-classifier-adapter": [folders["adapter"], folders["adapter3"], folders["adapter_mean"]]},
        {"reviews-classifier": {"challenger": 2}},
    )


@pytest.fixture
def models(registry, folders):
    return Models(registry.resolve, list(registry.folders), folders["base"])


@pytest.fixture(scope="session")
def speakers(tmp_path_factory):
    """Decoders: base, lora (an adapter), merged (of it), full."""
    root = tmp_path_factory.mktemp("decoders")
    base = tiny_decoders.tiny_base(root / "base")
    lora = tiny_decoders.tiny_adapter(base, root / "lora")
    model, tokenizer, card = decoder.load(lora, base)
    decoder.save_whole(model.merge_and_unload(), tokenizer, root / "merged", card)
    return {"base": base, "lora": lora, "merged": root / "merged", "full": tiny_decoders.tiny_full(base, root / "full")}


@pytest.fixture(scope="session")
def judges(speakers, tmp_path_factory):
    """Reward models trained on the whole decoder `sft`: adapter, and merged."""
    root, sft = tmp_path_factory.mktemp("judges"), speakers["full"]
    adapter = tiny_rlhf.reward_adapter(sft, root / "adapter")
    return {"sft": sft, "adapter": adapter, "merged": tiny_rlhf.reward_merged(sft, adapter, root / "merged")}


@pytest.fixture
def both(folders, speakers):
    """Models of a classifier and an assistant, with adapters of each."""
    registry = FakeRegistry(
        {"assistant": [speakers["full"], speakers["merged"]], "assistant-adapter": [speakers["lora"]],
         "reviews-classifier": [folders["merged"]], "reviews-classifier-adapter": [folders["adapter"]]},
        {"assistant": {"challenger": 1, "champion": 2}, "reviews-classifier": {"champion": 1}},
    )
    return Models(registry.resolve, list(registry.folders), folders["base"], speakers["base"])


@pytest.fixture
def server(both):
    """A real server on a free port, in a thread: its address and its Generation."""
    app = make_app(both)
    with running(app) as address:
        yield address, app.state.generation


@contextlib.contextmanager
def running(app):
    """The app under uvicorn on a free loopback port, as `ajuste serve` runs it; gives its address."""
    running = server_of(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not running.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class Held:
    """Work of the inference thread that stands still until it is let go; put in the place of Served.compute."""

    def __init__(self, monkeypatch):
        self.entered, self.go, self.sizes, plain = threading.Semaphore(0), threading.Semaphore(0), [], Served.compute

        def compute(served, rows):
            self.sizes.append(len(rows))
            self.entered.release()
            assert self.go.acquire(timeout=20)
            return plain(served, rows)

        monkeypatch.setattr(Served, "compute", compute)

    def free(self):
        for _ in range(10_000):
            self.go.release()


@pytest.fixture
def held(monkeypatch):
    held = Held(monkeypatch)
    yield held
    held.free()
