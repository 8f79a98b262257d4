"""A registry of tiny models on disk that needs no MLflow: names, versions and aliases in a dict."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from learning import classifier
from serving.models import Models
from tests.tiny_classifiers import tiny_adapter, tiny_base, tiny_full, tiny_merged


@dataclass
class FakeVersion:
    name: str
    version: int
    alias: str | None
    path: Path
    tags: dict = field(default_factory=dict)


class FakeRegistry:
    """resolve() as tracking.registry.resolve promises it: an alias, a version, or the champion, else the challenger."""

    def __init__(self, folders: dict[str, list[Path]], aliases: dict[str, dict[str, int]]):
        self.folders, self.aliases, self.calls = folders, aliases, 0
        self.sha256 = {path: self.digest(path) for paths in folders.values() for path in paths}

    @staticmethod
    def digest(path):
        adapter = path / "adapter_model.safetensors"
        return classifier.sha256_of(adapter if adapter.exists() else path / "model.safetensors")

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
