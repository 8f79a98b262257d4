"""From a registered version to a model that may answer: the digest, the load, one smoke request.

    check_digest   sha256 of the weights on disk = the one in the registry
    load           digest, weights, tokenizer, equal tensors shared (ajuste/serving/pool.py), a request
                   (ajuste/serving/smoke.py)

What fails in any of these is a RefusedModel, in one line. transformers and PEFT set global state while they load, so
one load runs at a time (ajuste/serving/models.py holds the lock); models that answer meanwhile do not read it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor, nn

from ajuste.learning.layers import bottleneck
from ajuste.models import classifier, decoder, reward
from ajuste.models.folder import read_card, sha256_of
from ajuste.serving import decoding, smoke
from ajuste.serving.pool import TensorPool

CONTAINER = Path("/sys/fs/cgroup/memory.max")
# what a model of each kind is for, where it was asked for something else
DOES = {
    "classifier": "labels texts: ask POST /classify",
    "decoder": "generates text: ask POST /v1/chat/completions",
    "reward": "scores responses: ask POST /v1/score",
}


class UnknownModel(LookupError):
    """No such model: the message names those that exist."""


class RefusedModel(ValueError):
    """The model's files are not what the registry recorded, or not what this server can answer with."""


class Version(Protocol):
    """What the registry says of a version (ajuste.tracking.registry.registry.Version)."""

    name: str
    version: Any
    alias: str | None
    path: Path
    tags: dict[str, str]


@dataclass(frozen=True)
class Place:
    """Where the weights stand, and the arithmetic that they answer in. An adapter's own weights stay float32."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def memory(self) -> int:
        """Bytes that the device has, or that this container may use."""
        if torch.device(self.device).type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        most = psutil.virtual_memory().total
        try:
            return min(most, int(CONTAINER.read_text()))
        except (OSError, ValueError):               # no such file, or `max`
            return most


@dataclass(frozen=True)
class Served:
    """A loaded model and the version that it is."""

    name: str
    version: str
    alias: str | None
    strategy: str
    model: nn.Module
    tokenizer: Any
    card: dict

    @property
    def kind(self) -> str:
        """`classifier`, `decoder` or `reward`."""
        return self.card.get("kind", "classifier")

    def must_be(self, kind: str) -> None:
        """Raise UnknownModel, saying what this model is for, unless it is of that kind."""
        if self.kind != kind:
            raise UnknownModel(f"`{self.name}` {DOES[self.kind]}")

    @property
    def context(self) -> int:
        """How many tokens a decoder or a reward model can look back on, those of a learned prefix not counted."""
        adapter = getattr(self.model, "active_peft_config", None)
        prefix = adapter.num_virtual_tokens if adapter and adapter.is_prompt_learning else 0
        return self.model.config.max_position_embeddings - prefix

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """Probabilities [N, C] of the texts, in their order; C follows card["labels"]. Raises UnknownModel."""
        self.must_be("classifier")
        return classifier.predict(self.model, self.tokenizer, self.card, list(texts))

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """A classifier's rows of token ids, cut at the card's max_tokens."""
        return self.tokenizer(list(texts), truncation=True, max_length=self.card["max_tokens"])["input_ids"]

    def compute(self, rows: Sequence[Sequence[int]]) -> list:
        """What a classifier or a reward model makes of rows of token ids: C probabilities a row, or a score."""
        if self.kind == "reward":
            return reward.score(self.model, rows).tolist()
        return torch.softmax(classifier.logits_of(self.model, rows, len(rows)), dim=-1).tolist()


def check_digest(version: Version) -> None:
    """Raise RefusedModel unless the weights on disk are the ones that were registered."""
    weights = "adapter_model.safetensors" if is_adapter(version) else "model.safetensors"
    if (version.path / bottleneck.CONFIG).is_file():
        weights = bottleneck.WEIGHTS
    label = f"{version.name}/{version.version}"
    if "sha256" not in version.tags:
        raise RefusedModel(f"{label} has no tag `sha256`: it was not registered by `ajuste run`, and cannot be checked")
    recorded = {weights: version.tags["sha256"]}
    if "head_sha256" in version.tags:       # mean pooling: the head is a file of its own
        recorded[classifier.HEAD] = version.tags["head_sha256"]
    for name, wanted in recorded.items():
        file = version.path / name
        if not file.is_file():
            raise RefusedModel(f"{label}: {file} is missing: was the project's folder moved? `ajuste doctor` checks it")
        found = sha256_of(file)
        if found != wanted:
            raise RefusedModel(f"{label}: {file} has sha256 {found[:12]}, the registry recorded {wanted[:12]}: "
                               "the file was changed or damaged; it is not loaded")


def is_adapter(version: Version) -> bool:
    """Whether the version needs its base: A and B in PEFT's layout, or another kind of adapter."""
    return decoder.is_adapter(version.path)


def load(
    version: Version, base: Path, base_of: Callable[[Version], Path | None], pool: TensorPool, place: Place,
) -> Served:
    """The model of a version, its equal tensors shared with those of the pool. One at a time. Raises RefusedModel.

    base: folder of the classifiers' base. base_of: gives that of a decoder or reward model; may raise ValueError.
    """
    label = f"{version.name}/{version.version}"
    try:
        check_digest(version)
        card = read_card(version.path)
        if card.get("kind") == "decoder":
            model, tokenizer, card = decoder.load(version.path, base_of(version), place.dtype)
            decoding.check(model)
        elif card.get("kind") == "reward":
            model, tokenizer, card = reward.load(version.path, base_of(version), place.dtype)
        elif is_adapter(version):
            model, tokenizer, card = classifier.load_adapter(base, version.path)
        else:
            model, tokenizer, card = classifier.load(version.path)
        if card.get("kind", "classifier") == "classifier":
            model = model.to(place.dtype)
        if place.device != "cpu":
            model = model.to(place.device)
    except RefusedModel:
        raise
    except Exception as error:          # what a broken file raises is as various as its readers
        raise RefusedModel(f"{label} does not load: {_said(error)}") from None
    if card.get("kind", "classifier") == "classifier" and card["task"] != "sequence":
        raise RefusedModel(f"{label} is a model for task `{card['task']}`: "
                           "/classify answers with one label a text, task `sequence`")
    model.eval().requires_grad_(False)
    pool.share(model)
    try:
        if card.get("kind") == "decoder":
            decoding.quicken(model)
        smoke.check(model, tokenizer, card)
    except Exception as error:
        raise RefusedModel(f"{label} fails its smoke request: {_said(error)}; it is not loaded") from None
    strategy = card.get("strategy", card.get("method", ""))      # a reward model has a method alone
    return Served(version.name, str(version.version), version.alias, strategy, model, tokenizer, card)


def key_of(one: Version | Served) -> tuple[str, str]:
    """Name and version number."""
    return one.name, str(one.version)


def stamp_of(version: Version) -> tuple:
    """Changes when another version, another digest or other files are there: then a refused one is tried again."""
    try:
        files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in version.path.iterdir())
    except OSError:
        files = []
    return key_of(version), version.tags.get("sha256"), tuple(files)


def _said(error: Exception) -> str:
    """An error in one line; its type too, unless it is one of those that this project words."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
